"""How often runs of one to four tokens occur in a sequence, as features.

Letters: b batch, l length, f features, g n-grams of one order.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

ORDERS = 4
LARGEST_VOCABULARY = 1 << 31
# An n-gram is one number below vocab_size ** n.
_LARGEST_CODE = 1 << 62
# Of as many sequences as there can be.
_LARGEST_RARITY = 64.0
# What occurs in one sequence alone says nothing of another.
_LEAST_SEQUENCES = 2
# Positions, and counts, that are looked at together: it bounds the memory.
_POSITIONS = 1 << 22


def expect_vocabulary(vocab_size: int) -> None:
    """Check how many tokens there are.

    Raises:
        ValueError: A size outside its range.
    """
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size is {vocab_size}; it must be 1 to {LARGEST_VOCABULARY}")


class NGrams(nn.Module):
    """Describe sequences of tokens by the n-grams that are in them.

    The orders are 1 to 4, and fewer above 46 340 tokens, where a number of 64 bits cannot tell so
    many n-grams apart. Of each order those are kept that occur in the most training sequences, from
    order 2 on in at least two. Of each, a sequence has

        log(1 + count) (1 + log((1 + n) / (1 + n_with)))

    where n_with of n training sequences have it; the vector of each order is scaled to length 1, so
    that sequences of any length compare and every order weighs the same.

    Args:
        vocab_size: Tokens are whole numbers from 0 below it.
        n_features: Most n-grams of each order, at least 1.

    Raises:
        ValueError: A size outside its range.

    References:
        Salton, Buckley, "Term-weighting approaches in automatic text retrieval", 1988,
        doi:10.1016/0306-4573(88)90021-0.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]])
        >>> ngrams = NGrams(2)
        >>> ngrams.fit(x, torch.ones(2, 4) > 0).shape      # 0, 1, and 01 and 10
        torch.Size([2, 4])
    """

    def __init__(self, vocab_size: int, *, n_features: int = 5040) -> None:
        super().__init__()
        expect_vocabulary(vocab_size)
        if n_features < 1:
            raise ValueError(f"n_features is {n_features}; it must be at least 1")
        self.vocab_size, self._most = vocab_size, n_features
        self.orders = [n for n in range(1, ORDERS + 1) if vocab_size**n <= _LARGEST_CODE]
        self.register_buffer("sizes", torch.zeros(len(self.orders), dtype=torch.int64))
        self.register_buffer("codes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("rarity", torch.zeros(0, dtype=torch.float32))
        self.sizes: Tensor
        self.codes: Tensor
        self.rarity: Tensor

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], vocab_size: int) -> "NGrams":
        """Make them again from their `state_dict`, which may come from anyone.

        Raises:
            ValueError: Sizes or n-grams that do not fit each other, or a value that cannot be.
            KeyError: A tensor is missing.
            RuntimeError: There is one too many.
        """
        made = cls(vocab_size)
        n = state["codes"].numel()
        shapes = {"sizes": (len(made.orders),), "codes": (n,), "rarity": (n,)}
        for name, shape in shapes.items():
            before, tensor = getattr(made, name), state[name]
            if tensor.shape != shape or tensor.dtype != before.dtype:
                raise ValueError(f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}")
            setattr(made, name, torch.empty_like(tensor))
        made.load_state_dict(dict(state))
        if not n or bool((made.sizes < 0).any()) or sum(made.sizes.tolist()) != n:
            raise ValueError(f"{n} n-grams of sizes {made.sizes.tolist()}")
        for order, (codes, _) in zip(made.orders, made._groups(), strict=True):
            inside = ((codes >= 0) & (codes < vocab_size**order)).all()
            if not bool(inside) or not bool((codes.diff() > 0).all()):
                raise ValueError(f"the n-grams of order {order} are not sorted, or out of range")
        if not bool(((made.rarity >= 1) & (made.rarity <= _LARGEST_RARITY)).all()):
            raise ValueError("rarity holds a value that it cannot have")
        return made

    @property
    def n_features(self) -> int:
        """How many n-grams there are."""
        return len(self.codes)

    @property
    def n_channels(self) -> int:
        """What a position holds: one token."""
        return 1

    @property
    def length(self) -> int:
        """What the features were made for; n-grams take sequences of any length."""
        return 1

    def fit(self, x: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b f"]:
        """Choose the n-grams by training sequences; return their features.

        Args:
            x: Tokens; what is behind the end of a sequence does not matter.
            mask: True on real positions, which come first, at least one in each sequence.
        """
        chosen = [self._chosen(x, mask, order) for order in self.orders]
        self.sizes = torch.tensor([len(codes) for codes, _ in chosen])
        self.codes = torch.cat([codes for codes, _ in chosen])
        rarity = [torch.log((1 + len(x)) / (1 + n_with.double())) for _, n_with in chosen]
        self.rarity = (1 + torch.cat(rarity)).float()
        return self.forward(x, mask)

    def forward(self, x: Int[Tensor, "b l"], mask: Bool[Tensor, "b l"]) -> Float[Tensor, "b f"]:
        """Return the features of sequences; arguments as of `fit`."""
        groups = zip(self.orders, self._groups(), strict=True)
        return torch.cat(
            [
                functional.normalize(_counts(x, mask, order, self.vocab_size, codes).log1p() * r)
                for order, (codes, r) in groups
            ],
            1,
        )

    def _groups(self) -> Iterator[tuple[Int[Tensor, " g"], Float[Tensor, " g"]]]:
        sizes = self.sizes.tolist()
        return zip(torch.split(self.codes, sizes), torch.split(self.rarity, sizes), strict=True)

    def _chosen(
        self, x: Tensor, mask: Tensor, order: int
    ) -> tuple[Int[Tensor, " g"], Int[Tensor, " g"]]:
        """Return the n-grams of most sequences, sorted, and in how many each is."""
        found, n_with = [], []
        for _, rows, codes in _occurrences(x, mask, order, self.vocab_size):
            distinct, index = torch.unique(codes, return_inverse=True)
            pairs = torch.unique(rows * len(distinct) + index)
            found.append(distinct)
            n_with.append(torch.bincount(pairs % len(distinct), minlength=len(distinct)))
        if not found:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        distinct, index = torch.unique(torch.cat(found), return_inverse=True)
        total = torch.zeros_like(distinct).index_add_(0, index, torch.cat(n_with))
        # Single tokens may be of one sequence, so that there is something to go by.
        often = torch.argsort(total, descending=True, stable=True)[: self._most]
        often = often[total[often] >= (_LEAST_SEQUENCES if order > 1 else 1)]
        kept = often.sort().values
        return distinct[kept], total[kept]


def _occurrences(
    x: Tensor, mask: Tensor, order: int, vocab_size: int, *, n_counts: int = 0
) -> Iterator[tuple[slice, Int[Tensor, " m"], Int[Tensor, " m"]]]:
    """Yield, for some sequences after others, the row and the code of each n-gram in them."""
    n_windows = x.shape[1] - order + 1
    if n_windows < 1:
        return
    step = max(1, _POSITIONS // max(x.shape[1], n_counts))
    for begin in range(0, len(x), step):
        some = slice(begin, begin + step)
        codes = torch.zeros_like(x[some, :n_windows])
        for place in range(order):
            codes = codes * vocab_size + x[some, place : place + n_windows]
        whole = mask[some, order - 1 :]  # real positions come first: the last one tells
        if bool(whole.any()):
            yield some, whole.nonzero()[:, 0], codes[whole]


def _counts(
    x: Tensor, mask: Tensor, order: int, vocab_size: int, kept: Int[Tensor, " g"]
) -> Float[Tensor, "b g"]:
    """Return how often each n-gram that is kept occurs."""
    counts = torch.zeros(len(x), len(kept), dtype=torch.float32)
    if len(kept):
        found = _occurrences(x, mask, order, vocab_size, n_counts=len(kept))
        for some, rows, codes in found:
            place = torch.searchsorted(kept, codes).clamp(max=len(kept) - 1)
            known = kept[place] == codes
            index = rows[known] * len(kept) + place[known]
            part = torch.bincount(index, minlength=counts[some].numel())
            counts[some] = part.reshape(counts[some].shape).float()
    return counts
