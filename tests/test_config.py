import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spherescan.config import (
    RunConfig,
    load_config,
    nearest,
    parse_config,
    settings,
    to_toml,
)
from spherescan.errors import ConfigError


def refuse(tmp_path: Path, text: str, message: str, name: str = "a.toml") -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nstpes = 3", r"unknown key 'run\.stpes'; did you mean 'run\.steps'"),
        ("[rnu]\nsteps = 3", "unknown section 'rnu'; did you mean 'run'"),
        ("[run]\nlr = 3", r"unknown key 'run\.lr'; it is 'optim\.lr'"),
        ("[run]\ncolour = 3", r"unknown key 'run\.colour'; known are run\.dir, run\.steps, "),
        ("d_model = 3", r"unknown key 'd_model'; it is 'model\.d_model'"),
        ("[run]\nsteps = '3'", r'run\.steps is "3"; it should be a valid integer'),
        ("[run]\nsteps = 3.0", r"run\.steps is 3\.0; it should be a valid integer"),
        ("[run]\nsteps = true", r"run\.steps is true; it should be a valid integer"),
        ("[run]\nsteps = -3", r"run\.steps is -3; it should be greater than or equal to 1"),
        ("[run]\nsteps = 9007199254740993", "less than or equal to 9007199254740992"),
        ("[optim]\nlr = nan", r"optim\.lr is NaN; it should be a finite number"),
        ("[optim]\nlr = -inf", r"optim\.lr is -Infinity; it should be a finite number"),
        ("[run]\ndir = 1979-05-27", "neither text, number"),
        ("[model]\ngate = 1", r"model\.gate is 1; it should be a valid boolean"),
        ("[model]\npooling = ['mean', 'sum']", r'model\.pooling\.1 is "sum"; it should be'),
        ("[model]\npooling = []", r"model\.pooling is empty"),
        ("[checkpoint]\nkeep = 1", "greater than or equal to 2"),
        ("[run]\nsteps = 3\nsteps = 4", "line 3|twice|overwrite"),
        ("run = 3", "run is 3; it should be an object"),
        ("[data]\nsource = 'tokens'\n[model]\nbidirectional = true", "sees the tokens to predict"),
        ("[data]\nsource = 'tokens'\ntask = 'regression'", r"data\.task"),
        ("[data]\nsource = 'synthetic'\ntrain = 'x'", "exclude each other"),
        ("[data]\nseq_len = 9", r"data\.seq_len is 9; it has an effect only with tokens"),
        ("[data]\nsource = 'tokens'\njitter = 0.5", r"data\.jitter is 0\.5; .*\"series\""),
        (
            "[data]\nvalidation = 'b'\nvalidation_fraction = 0.3",
            r"data\.validation_fraction is 0\.3; it has an effect only without data\.validation",
        ),
        (
            "[model]\nd_model = 8\nexpand = 3\ndt_rank = 25",
            r"model\.dt_rank is 25; it must be at most model\.expand .* which is 24",
        ),
        ("[model]\ndropout = 1.0", r"model\.dropout is 1\.0; it should be less than 1"),
        ("[model]\nn_pool_heads = 2", r"model\.n_pool_heads is 2; .*attention"),
        ("[prototypes]\nloss = 'squared_cosine'\nscale = 3.0", r"prototypes\.scale is 3\.0"),
        ("[data]\ntask = 'regression'\n[prototypes]\nlearnable = true", r"prototypes\.learnable"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_that_names_it(tmp_path, text, message):
    refuse(tmp_path, text, message)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"run": {"steps": 30, "steps": 40}}', "the key 'steps' stands twice"),
        ("a.json", '{"optim": {"lr": NaN}}', "finite"),
        ("a.json", '{"optim": {"lr": 1e999}}', "finite"),
        ("a.json", "[1]", "holds no sections"),
        ("a.yaml", "run:\n  steps: 30\n  steps: 40", "duplicate key"),
        ("a.yaml", "model:\n  gate: on", r'model\.gate is "on"; it should be a valid boolean'),
        ("a.yaml", "- a", "holds no sections"),
        ("a.ini", "", r"unknown ending '\.ini'"),
    ],
)
def test_json_and_yaml_are_as_strict(tmp_path, name, text, message):
    refuse(tmp_path, text, message, name)


def test_yaml_reads_numbers_as_people_do(tmp_path):
    (tmp_path / "a.yaml").write_text("optim:\n  lr: 1e-4\nrun:\n  steps: 010\n")
    config = load_config(tmp_path / "a.yaml")
    assert (config.optim.lr, config.run.steps) == (1e-4, 10)


def test_without_its_extra_yaml_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    (tmp_path / "a.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=r"pip install 'spherescan\[yaml\]'"):
        load_config(tmp_path / "a.yaml")


def test_sections_within_sections_have_an_end(tmp_path):
    refuse(tmp_path, "[data]\n" + ".".join(["a"] * 1900) + " = 1", "too deep")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", "[run]\nsteps = 7"),
        ("a.json", '{"run": {"steps": 7}}'),
        ("a.yaml", "run: {steps: 7}"),
    ],
)
def test_the_mark_that_editors_of_windows_write_is_no_part_of_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert load_config(tmp_path / name).run.steps == 7


def test_what_a_new_run_may_not_have_does_not_end_an_older_one():
    older = {"data": {"validation": "b", "validation_fraction": 0.3}, "model": {"dt_rank": 1000}}
    assert parse_config(older).model.dt_rank == 1000


def test_the_widest_rank_and_the_usual_fraction_are_fine():
    flags = {"model.d_model": "8", "model.dt_rank": "16", "data.validation": "b"}
    assert load_config(None, flags).model.dt_rank == 16


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "a.toml").write_text("[run]\nsteps = 30\nseed = 5\n")
    config = load_config(tmp_path / "a.toml", {"run.seed": "7", "model.pooling": "mean,max"})
    assert (config.run.steps, config.run.seed, config.run.log_every) == (30, 7, 20)
    assert config.model.pooling == ("mean", "max")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr", "1e-3", 1e-3),
        ("optim.lr", "1", 1.0),
        ("optim.lr", ".5", 0.5),
        ("run.threads", "none", None),
        ("run.dir", "none", None),
        ("run.dir", "5", "5"),
        ("model.gate", "false", False),
        ("data.source", "tokens", "tokens"),
        ("model.dt_rank", "3", 3),
    ],
)
def test_flags_are_text_of_the_type_of_their_setting(key, text, value):
    config = load_config(None, {key: text})
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("run.steps", "1_000"), ("run.steps", " 7"), ("run.steps", "7.0"), ("run.steps", "none"),
        ("run.steps", "x"), ("optim.lr", "nan"), ("optim.lr", "Infinity"), ("model.gate", "yes"),
        ("model.gate", "True"), ("model.pooling", ""), ("run.seed", "-1"), ("data.train", ""),
        ("run.steps", "٣"), ("run.steps", ".5"), ("optim.lr", "."), ("optim.lr", "..5"),
    ],
)  # fmt: skip
def test_flags_that_mean_nothing_are_refused(key, text):
    if (key, text) == ("run.steps", " 7"):
        assert load_config(None, {key: text}).run.steps == 7  # JSON's blanks are harmless
        return
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load_config(None, {key: text})


def test_a_section_given_as_a_value_is_refused_with_its_flag(tmp_path):
    (tmp_path / "a.toml").write_text("run = 3")
    with pytest.raises(ConfigError, match=r"\[run\] must be a section"):
        load_config(tmp_path / "a.toml", {"run.steps": "4"})
    with pytest.raises(ConfigError, match=r"unknown key .* 'run\.steps'"):
        load_config(None, {"run.stpes": "4"})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "data": st.fixed_dictionaries({"train": st.text(min_size=1, max_size=9)}),
            "model": st.fixed_dictionaries({"d_model": st.integers(1, 99), "gate": st.booleans()}),
            "optim": st.fixed_dictionaries({"lr": st.floats(1e-9, 1e9)}),
        },
    )
)
def test_writing_and_reading_again_gives_the_same(tree):
    config = parse_config(tree)
    assert parse_config(tomllib.loads(to_toml(config))) == config
    assert parse_config(json.loads(config.model_dump_json())) == config


@given(
    st.dictionaries(
        st.sampled_from([*RunConfig.model_fields, "other"]),
        st.dictionaries(
            st.sampled_from([name.partition(".")[2] for name, _ in settings()]),
            st.one_of(st.integers(), st.floats(), st.text(max_size=4), st.booleans(), st.none()),
            max_size=3,
        ),
        max_size=3,
    )
)
def test_anything_is_a_configuration_or_an_error_of_one_line(tree):
    message = ""
    try:
        parse_config(tree)
    except ConfigError as error:
        message = str(error)
    assert "\n" not in message


def test_the_nearest_name_is_suggested():
    assert nearest("stpes", ["seed", "steps"]) == "did you mean 'steps'?"
    assert nearest("colour", ["seed", "steps"]) == "known are seed, steps"
    assert nearest("colour", ["seed"] * 13) == "nothing here is like it"


def test_names_are_those_of_the_registries():
    from typing import get_args

    from spherescan.data import NEGATIVES
    from spherescan.losses import PROTOTYPE_LOSSES
    from spherescan.nn import MIXERS, POOLING_NAMES
    from spherescan.nn.prototypes import INITS
    from spherescan.surgery import AGGREGATORS, WEIGHTINGS
    from spherescan.train.local import LOCAL_LOSSES

    fields = dict(settings())
    pooling = get_args(fields["model.pooling"].annotation)[0]
    assert sorted(get_args(pooling)) == sorted(POOLING_NAMES)
    for key, registry in (
        ("model.mixer", MIXERS),
        ("prototypes.loss", PROTOTYPE_LOSSES),
        ("prototypes.init", INITS),
        ("local.loss", {"none", *LOCAL_LOSSES}),
        ("local.negatives", {"wrong_label", *NEGATIVES}),
        ("surgery.aggregator", AGGREGATORS),
        ("surgery.weighting", WEIGHTINGS),
    ):
        assert sorted(get_args(fields[key].annotation)) == sorted(registry)


def test_every_setting_is_documented():
    for name, field in settings():
        assert field.description, name
