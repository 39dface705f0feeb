"""Any settings are a configuration that can be written down, or an error that names one of them.

SPHERESCAN_EXAMPLES says how many are tried.
"""

import json
import os
import tomllib
from collections.abc import Iterator
from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import settings as tried
from hypothesis import strategies as st

from spherescan.cli import main
from spherescan.config import RunConfig, load_config, parse_config, settings, to_flags, to_toml
from spherescan.errors import ConfigError

pytestmark = pytest.mark.unwatched

EXAMPLES = int(os.environ.get("SPHERESCAN_EXAMPLES", "1000"))
NAMES = [name for name, _ in settings()]


def words(annotation: object) -> list[str]:
    """Return the words that a type lists."""
    found = []
    for part in get_args(annotation):
        found += [part] if isinstance(part, str) else words(part)
    return found


# Some value of any setting is among these.
TEXTS = sorted(
    {word for _, field in settings() for word in words(field.annotation)}
    | {"true", "false", "none", "0", "1", "2", "3", "7", "40", "0.25", "0.5", "a", "b.toml"}
    | {"auto", ".txt", "first:1", "insert:1", "specific:0", "last,mean", "1e-9"}
)
SURGERY = {"local.loss": "prototype", "local.mode": "surgery"}
# What a setting may need beside it.
COMPANY = [
    {},
    {"local.loss": "prototype"},
    {"local.loss": "goodness"},
    {"local.loss": "symmetric_goodness"},
    {"local.loss": "prototype", "local.mode": "detached"},
    {"local.loss": "rust_trainer", "local.mode": "detached", "model.expand": "1"},
    {"local.loss": "prototype", "local.mode": "grouped", "model.n_layers": "4"},
    *(SURGERY | {"surgery.aggregator": name} for name in ("cagrad", "rust_pcgrad")),
    *(SURGERY | {"surgery.aggregator": f"rust_{name}"} for name in ("gradnorm", "cagradstep")),
    SURGERY | {"surgery.weighting": "gradnorm"},
    {"grow.layers": "5"},
    {"grow.layers": "5", "grow.at_step": "3"},
    {"data.source": "tokens"},
    {"data.source": "synthetic"},
    {"data.source": "synthetic", "model.gate": "false", "model.expand": "1", "model.dt_rank": "1"},
    {"freeze.blocks": "first:1"},
    {"prototypes.learnable": "true"},
    {"model.pooling": "attention"},
]


def flat(config: RunConfig) -> dict[str, object]:
    tree = config.model_dump(mode="json")
    return {f"{section}.{key}": tree[section][key] for section in tree for key in tree[section]}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def loaded(flags: dict[str, str]) -> dict[str, object] | None:
    try:
        return flat(load_config(None, flags))
    except ConfigError:
        return None


def ways_to_change(name: str) -> Iterator[dict[str, str]]:
    """Yield settings that give one of them another value than it has without."""
    for company in COMPANY:
        before = loaded(company)
        if name in company or not before:
            continue
        for text in TEXTS:
            after = loaded(company | {name: text})
            if after and after[name] != before[name]:
                yield company | {name: text}


# There is one mixer so far.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "model.mixer"])
def test_every_flag_changes_its_setting_and_no_other(name, capsys):
    flags = next(ways_to_change(name), None)
    assert flags, "no value of TEXTS changes it in any company"
    company = {key: text for key, text in flags.items() if key != name}
    before, after = loaded(company), loaded(flags)
    assert {key for key in before if before[key] != after[key]} == {name}
    arguments = [part for key, text in flags.items() for part in (flag(key), text)]
    assert main(["train", "--print-config", *arguments]) == 0
    assert flat(parse_config(tomllib.loads(capsys.readouterr().out))) == after


@tried(max_examples=EXAMPLES // 4)  # each asks the command line too, which is slow
@given(st.sampled_from(NAMES), st.data())
def test_a_flag_that_is_not_spelt_out_is_never_taken(name, data):
    kind = data.draw(st.sampled_from(["cut", "changed", "doubled"]))
    at = data.draw(st.integers(1, len(name) - 1))
    if kind == "cut":
        wrong = name[:at]
    elif kind == "changed":
        wrong = name[:at] + data.draw(st.sampled_from("abcxyz_-.")) + name[at + 1 :]
    else:
        wrong = name[:at] + name[at] + name[at:]
    # A flag may be written with dashes.
    assume(wrong.replace("-", "_") not in NAMES)
    with pytest.raises(ConfigError):
        load_config(None, {wrong: "3"})
    assert main(["train", "--print-config", flag(wrong), "3"]) == 2


@tried(max_examples=EXAMPLES)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(TEXTS), max_size=6))
def test_any_flags_are_a_configuration_that_can_be_written_or_an_error_that_names_one(flags):
    message, config = "", None
    try:
        config = load_config(None, flags)
    except ConfigError as error:
        message = str(error)
    expect_whole_or_named(config, message, flags)


def expect_whole_or_named(config: RunConfig | None, message: str, given_names) -> None:
    if config is None:
        assert "\n" not in message
        assert any(name in message for name in given_names), message
        return
    for again in (tomllib.loads(to_toml(config)), json.loads(config.model_dump_json())):
        assert parse_config(again) == config
    values = flat(config)
    optional = [name for name, field in settings() if type(None) in get_args(field.annotation)]
    # A flag cannot say a text "none" where there may be nothing.
    if all(values[name] != "none" for name in optional):
        flags = dict(text.removeprefix("--").split("=", 1) for text in to_flags(config))
        said = {name.replace("-", "_"): value for name, value in flags.items()}
        assert load_config(None, said) == config


VALUES = st.one_of(
    st.integers(-(2**60), 2**60),
    st.floats(),
    st.text(max_size=8),
    st.booleans(),
    st.none(),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(TEXTS),
)


@tried(max_examples=EXAMPLES)
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4))
def test_any_values_are_a_configuration_that_can_be_written_or_an_error_that_names_one(values):
    tree: dict[str, dict[str, object]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    message, config = "", None
    try:
        config = parse_config(tree)
    except ConfigError as error:
        message = str(error)
    expect_whole_or_named(config, message, values)
