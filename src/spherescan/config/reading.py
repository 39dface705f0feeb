"""From files and flags to a configuration, and back to TOML."""

import difflib
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from spherescan.config.checks import check_new
from spherescan.config.sections import RunConfig, Section
from spherescan.errors import ConfigError

MAX_BYTES = 1 << 16
MAX_DOTS = 2000


def load_config(path: Path | None, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Read a configuration file and put flags over it.

    Args:
        path: `.toml`, `.json`, or `.yaml` when the yaml extra is installed; None for defaults.
        overrides: Values as text by their dotted key, such as {"run.steps": "100"}.

    Raises:
        ConfigError: A file that cannot be read, or a setting that is unknown, of the wrong type,
            out of range or given twice.
    """
    tree = {} if path is None else load_tree(path)
    where = "" if path is None else f"{path}: "
    overridden(tree, overrides or {}, where=where)
    if path is not None and overrides:  # what is wrong may be in either
        where = f"{path} and flags: "
    config = parse_config(tree, where=where)
    try:
        check_new(config)
    except ValueError as error:
        raise ConfigError(f"{where}{error}") from None
    return config


def overridden(
    tree: dict[str, Any], overrides: Mapping[str, str], *, where: str = ""
) -> dict[str, Any]:
    """Put values, as text by their dotted key, over those of a tree, and return it.

    Raises:
        ConfigError: Something else than a section stands where one is needed.
    """
    fields = dict(settings())
    for key, text in overrides.items():
        section, _, name = key.partition(".")
        part = tree.setdefault(section, {})
        if not isinstance(part, dict):
            raise ConfigError(f"{where}[{section}] must be a section of settings, not {part!r}")
        part[name] = _from_text(text, fields[key]) if key in fields else text
    return tree


def parse_config(tree: Mapping[str, Any], *, where: str = "") -> RunConfig:
    """Check a nested mapping and return the configuration it stands for.

    Args:
        tree: Sections of settings.
        where: Put in front of a message.

    Raises:
        ConfigError: See `load_config`.

    Example:
        >>> parse_config({"run": {"steps": 50}}).run.steps
        50
    """
    try:
        # As JSON an array may fill a tuple, while a text or a boolean is still no number.
        return RunConfig.model_validate_json(json.dumps(tree))
    except RecursionError as error:
        raise ConfigError(f"{where}sections lie too deep within each other") from error
    except TypeError as error:  # a date of TOML, say
        raise ConfigError(
            f"{where}a value is neither text, number, truth nor list: {error}"
        ) from error
    except ValidationError as error:
        # An unknown key explains a missing or mistyped one: it goes first.
        problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ConfigError(where + _explain(problems[0])) from None


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted key and the field of every setting, in the order of the sections."""
    for section, field in RunConfig.model_fields.items():
        assert isinstance(field.annotation, type)
        assert issubclass(field.annotation, Section)
        for name, setting in field.annotation.model_fields.items():
            yield f"{section}.{name}", setting


def nearest(name: str, known: list[str], *, after: str = "") -> str:
    """Return a hint at the known name most like the given one, or all of a few when none is.

    Args:
        name: What was given.
        known: What there is.
        after: A common beginning that does not count as likeness.

    Example:
        >>> nearest("stpes", ["seed", "steps"])
        "did you mean 'steps'?"
        >>> nearest("colour", ["seed", "steps"])
        'known are seed, steps'
    """
    tails = [text.removeprefix(after) for text in known]
    close = difflib.get_close_matches(name.removeprefix(after), tails, n=1)
    if close:
        return f"did you mean {after + close[0]!r}?"
    # More than a dozen names are no hint.
    return f"known are {', '.join(known)}" if len(known) <= 12 else "nothing here is like it"


def to_toml(config: RunConfig) -> str:
    """Write a configuration as TOML that reads back as the same; unset settings are left out."""
    lines = []
    for section, values in config.model_dump(exclude_none=True).items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml_value(value)}" for key, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def to_flags(config: RunConfig) -> list[str]:
    """Write what differs from the defaults as flags of the command line, in order.

    Example:
        >>> to_flags(parse_config({"run": {"steps": 10}, "data": {"train": "a b.csv"}}))
        ['--data.train=a b.csv', '--run.steps=10']
    """
    flags = []
    for key, field in settings():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if value != field.get_default():
            flags.append(f"--{key.replace('_', '-')}={_flag_value(value, field)}")
    return flags


def _flag_value(value: Any, field: FieldInfo) -> str:
    match value:
        case None:
            return "none"
        case "none" if type(None) in get_args(field.annotation):
            return "./none"  # a path; as it is, the word stands for nothing
        case str():
            return value
        case tuple():
            return ",".join(value)
        case _:
            return json.dumps(value)


def _toml_value(value: Any) -> str:
    """Write as JSON, which TOML reads too but for surrogate pairs and a bare delete character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def load_tree(path: Path) -> dict[str, Any]:
    """Read a file of settings without looking at their names.

    Raises:
        ConfigError: It cannot be read or holds no settings.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")  # editors of Windows write its mark
    except OSError as error:
        folder = isinstance(error, IsADirectoryError)
        hint = "; spherescan resume goes on with a run" if folder else ""
        raise ConfigError(f"{path}: cannot be read: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason})") from error
    except ValueError as error:  # a NUL in the path
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    # A key of n dotted parts takes time and memory of n * n to read.
    if len(data) > MAX_BYTES or text.count(".") > MAX_DOTS:
        raise ConfigError(
            f"{path}: is longer than {MAX_BYTES} bytes or has more than {MAX_DOTS} dots, as no "
            "file of settings has; check the path"
        )
    parse: Callable[[str], Any]
    match path.suffix:
        case ".toml":
            parse = tomllib.loads
        case ".json":
            parse = _parse_json
        case ".yaml" | ".yml":
            parse = _parse_yaml
        case other:
            raise ConfigError(
                f"{path}: unknown ending {other!r}; settings are in .toml, .json or .yaml, and "
                "--data.train gives data"
            )
    try:
        tree = parse(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds no sections of settings, such as [run] in TOML")
    return tree


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tree = dict(pairs)
        if len(tree) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} stands twice")
        return tree

    return json.loads(text, object_pairs_hook=unique)


def _parse_yaml(text: str) -> Any:
    try:
        from ruamel.yaml import YAML  # noqa: PLC0415  an extra that few need
        from ruamel.yaml.error import MarkedYAMLError  # noqa: PLC0415
        from ruamel.yaml.events import AliasEvent  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            "a .yaml configuration needs the yaml extra: pip install 'spherescan[yaml]'"
        ) from None
    try:
        # A few lines of aliases of aliases stand for more values than fit into memory.
        if any(isinstance(e, AliasEvent) for e in YAML(typ="safe", pure=True).parse(text)):
            raise ValueError("an alias (*name) stands for a value; write the value itself")
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error


def _from_text(text: str, field: FieldInfo) -> Any:
    """Turn the text of a flag into the value that a file would hold; what is none stays text."""
    kinds = {field.annotation, *get_args(field.annotation)}
    if type(None) in kinds and text == "none":
        return None
    if str in kinds or any(get_origin(k) is Annotated and get_args(k)[0] is str for k in kinds):
        return text
    if Ellipsis in kinds:  # a tuple of any length
        return text.split(",") if text else []
    try:
        # The grammar of JSON has no `1_000` or `nan`, which Python would take, and no `.5`.
        return json.loads(f"0{text}" if text.startswith(".") else text, parse_constant=str)
    except (ValueError, RecursionError):
        return text


def _explain(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    match problem["type"]:
        case "extra_forbidden":
            section, _, name = key.rpartition(".")
            homes = [known for known, _ in settings() if known.endswith(f".{name}")]
            if homes:
                return f"unknown key {key!r}; it is {homes[0]!r}"
            if not section:
                return f"unknown section {key!r}; {nearest(key, list(RunConfig.model_fields))}"
            here = [known for known, _ in settings() if known.startswith(f"{section}.")]
            return f"unknown key {key!r}; {nearest(key, here, after=f'{section}.')}"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "string_too_short":
            return f"{key} is empty; give a name, or leave it out"
        case _:
            got = json.dumps(problem["input"], default=str)
            return f"{key} is {got}; it {problem['msg'].removeprefix('Input ')}"
