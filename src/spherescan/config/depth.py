"""Where blocks are added and which are frozen, from the text of a setting."""

import re


def new_positions(placement: str, *, base: int, target: int) -> tuple[int, ...]:
    """Return the positions of the new blocks in the grown model, ascending.

    Args:
        placement: "append", "prepend", "insert:N" or "specific:I,J,...".
        base: Blocks before.
        target: Blocks after.

    Raises:
        ValueError: Nothing to add, a text that is none of these, or a position that is out of
            range, given twice, or one too many or too few.

    Example:
        >>> new_positions("specific:1,3,4,5", base=2, target=6)
        (1, 3, 4, 5)
        >>> new_positions("insert:1", base=2, target=4)
        (1, 2)
    """
    count = target - base
    if count < 1:
        raise ValueError(
            f"grow.layers is {target} and the model has {base} already; it must be larger"
        )
    kind, _, rest = placement.partition(":")
    match kind, rest:
        case "append", "":
            return tuple(range(base, target))
        case "prepend", "":
            return tuple(range(count))
        case "insert", text if re.fullmatch(r"[0-9]{1,9}", text):
            at = int(text)
            if at > base:
                raise ValueError(
                    f"grow.placement is {placement!r}; the model has {base} blocks, so N lies in "
                    f"0..{base}"
                )
            return tuple(range(at, at + count))
        case "specific", text if _LIST.fullmatch(text):
            return _specific(placement, _numbers(text), count=count, target=target)
    raise ValueError(
        f"grow.placement is {placement!r}; give append, prepend, insert:N or specific:I,J,..."
    )


def frozen_blocks(text: str, *, depth: int) -> tuple[int, ...]:
    """Return the blocks that are not trained, ascending.

    Args:
        text: "none", "first:N" or "indices:I,J,...".
        depth: Blocks of the model.

    Raises:
        ValueError: A text that is none of these, a block out of range or given twice, or all
            blocks.

    Example:
        >>> frozen_blocks("first:2", depth=6)
        (0, 1)
    """
    kind, _, rest = text.partition(":")
    match kind, rest:
        case "none", "":
            return ()
        case "first", count if re.fullmatch(r"[0-9]{1,9}", count):
            chosen = list(range(min(int(count), depth + 1)))
        case "indices", indices if _LIST.fullmatch(indices):
            chosen = _numbers(indices)
        case _:
            raise ValueError(
                f"freeze.blocks is {text!r}; give none, first:N or indices:I,J,... from 0"
            )
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"freeze.blocks is {text!r}; it names a block twice")
    if max(chosen, default=0) >= depth:
        raise ValueError(f"freeze.blocks is {text!r}; the model has blocks 0..{depth - 1}")
    if len(chosen) == depth:
        raise ValueError(f"freeze.blocks is {text!r}: all {depth} blocks; leave one to train")
    return tuple(sorted(chosen))


_LIST = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})*")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _specific(placement: str, positions: list[int], *, count: int, target: int) -> tuple[int, ...]:
    if len(set(positions)) < len(positions):
        raise ValueError(f"grow.placement is {placement!r}; it names a position twice")
    if len(positions) != count:
        raise ValueError(
            f"grow.placement is {placement!r}: {len(positions)} positions for {count} new blocks"
        )
    if max(positions) >= target:
        raise ValueError(
            f"grow.placement is {placement!r}; the grown model has blocks 0..{target - 1}"
        )
    return tuple(sorted(positions))
