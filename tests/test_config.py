"""What a person chooses: defaults, refusals and files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from qlora_demo.config import GenerationSettings, TrainConfig, column_mapping, target_names
from qlora_demo.errors import ConfigError
from qlora_demo.knobs import allowed, field_names, knob

Config = type[TrainConfig] | type[GenerationSettings]
CONFIGS: tuple[Config, ...] = (TrainConfig, GenerationSettings)
KNOBS = [(config, name) for config in CONFIGS for name in field_names(config)]


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_are_valid_and_are_the_declared_ones(config: Config) -> None:
    made = config().model_dump()
    assert made == {name: knob(config, name).default for name in field_names(config)}
    assert config(**made).model_dump() == made


@pytest.mark.parametrize(("config", "name"), KNOBS)
def test_each_knob_has_a_meaning_a_label_a_group_and_allowed_values(config: Config, name: str) -> None:
    extra = knob(config, name).json_schema_extra
    assert isinstance(extra, dict)
    assert knob(config, name).description
    assert extra["label"]
    assert extra["group"]
    assert allowed(config, name)


@pytest.mark.parametrize(
    ("name", "value", "range_"),
    [
        ("r", 0, "a whole number >= 1 and <= 256"),
        ("r", 257, "a whole number >= 1 and <= 256"),
        ("r", 2.5, "a whole number >= 1 and <= 256"),
        ("r", "eight", "a whole number >= 1 and <= 256"),
        ("r", None, "a whole number >= 1 and <= 256"),
        ("r", [8], "a whole number >= 1 and <= 256"),
        ("max_length", 15, "a whole number >= 16 and <= 131072"),
        ("eval_rows", 0, "a whole number >= 1 and <= 10000"),
        ("lora_dropout", 1, "a number >= 0 and < 1"),
        ("lora_dropout", -0.1, "a number >= 0 and < 1"),
        ("learning_rate", 0, "a number > 0 and <= 1"),
        ("learning_rate", 1.5, "a number > 0 and <= 1"),
        ("method", "dora", "one of qlora, lora, lora-8bit"),
        ("bnb_4bit_quant_type", "int4", "one of nf4, fp4"),
        ("use_dora", "perhaps", "true or false"),
        ("dataset_split", "a/../b", "a text of 0 to 200 characters"),
        ("gradient_checkpointing", True, "one of auto, on, off"),
        ("lr_scheduler_type", "step", "one of cosine, linear, constant_with_warmup"),
        ("max_steps", -2, "a whole number >= -1 and <= 1e+06"),
        ("model", 7, "a text of 1 to 400 characters"),
        ("dataset", "", "a text of 1 to 400 characters"),
    ],
)
def test_a_bad_value_is_refused_with_the_field_the_value_and_the_allowed_range(
    name: str, value: Any, range_: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert caught.value.field == name
    assert str(caught.value) == f"{name}: {value!r} is not allowed; give {range_}"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "nan", "inf"])
@pytest.mark.parametrize("name", ["learning_rate", "lora_dropout", "num_train_epochs", "warmup_steps", "max_grad_norm"])
def test_a_number_that_is_not_finite_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .* is not allowed; give a number"):
        TrainConfig(**{name: value})


@pytest.mark.parametrize("value", [-(2**63), 2**63, 10**400, -1e308, 1e308, "9" * 5000, "\0", "\ud800", {}, b"\xff"])
@pytest.mark.parametrize("name", [name for name in field_names(TrainConfig) if name not in ("model", "dataset")])
def test_an_extreme_value_is_refused_with_the_field_on_one_line(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert caught.value.field == name
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("config", "name"), KNOBS)
def test_the_declared_limits_themselves_are_accepted(config: Config, name: str) -> None:
    schema = config.model_json_schema()["properties"][name]
    edges = [schema[key] for key in ("minimum", "maximum") if key in schema] + schema.get("enum", [])
    method = {"method": "lora"} if name == "init_lora_weights" else {}  # some are made of 16-bit weights
    assert [getattr(config(**{**method, name: edge}), name) for edge in edges] == edges


def test_zero_steps_are_refused_and_the_remedy_names_epochs() -> None:
    with pytest.raises(ConfigError, match=r"^max_steps: 0 .*-1 \(use num_train_epochs\)"):
        TrainConfig(max_steps=0)


def test_an_unknown_field_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^rank: unknown field; known are model, .*report_to$"):
        TrainConfig(**{"rank": 8})
    with pytest.raises(ConfigError, match=r"^a line and more: unknown field"):
        TrainConfig(**{"a\nline\rand  more": 8})


@pytest.mark.parametrize(
    ("old", "hint"),
    [
        ("max_seq_length", "it is called max_length now"),
        ("lora_r", "it is called r now"),
        ("torch_dtype", "the device decides it now, so leave it out"),
    ],
)
def test_a_field_of_before_hints_at_what_it_is_now(old: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"^{old}: unknown field; {hint}; known are"):
        TrainConfig(**{old: 8})


def test_a_config_cannot_be_changed_in_place() -> None:
    config = TrainConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.r = 8  # type: ignore[misc]
    assert config == TrainConfig()


def test_a_changed_copy_leaves_the_original_and_is_validated() -> None:
    config = TrainConfig(seed=7)
    assert config.changed(r=8) == TrainConfig(seed=7, r=8)
    assert config == TrainConfig(seed=7)
    with pytest.raises(ConfigError, match=r"^r: 0 is"):
        config.changed(r=0)


def test_values_from_the_command_line_are_read_as_numbers() -> None:
    assert TrainConfig(r="8", learning_rate="1e-4", max_steps="-1") == TrainConfig(
        r=8, learning_rate=1e-4, max_steps=-1
    )


def test_a_config_survives_json() -> None:
    config = TrainConfig(model="Ünicode/模型", r=8, learning_rate=1 / 3, method="lora", max_steps=-1, seed=2**31)
    assert TrainConfig.from_json(config.model_dump_json(), "f") == config


def test_a_file_of_some_fields_is_read_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"r": 8}', "utf-8")
    assert TrainConfig.from_file(tmp_path / "c.json") == TrainConfig(r=8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
        (b"[]", "holds a list; write one JSON object"),
        (b"null", "holds a NoneType; write one JSON object"),
        (b'"r"', "holds a str; write one JSON object"),
        (b'"\xff"', "cannot read .*utf-8"),
        (b'{"r": NaN}', "^r: nan is not allowed"),
        (b'{"learning_rate": 1e999}', "^learning_rate: inf is not allowed"),
    ],
)
def test_a_damaged_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_file(tmp_path / "c.json")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^config: cannot read .*nowhere\.json .*; give a JSON file"):
        TrainConfig.from_file(tmp_path / "nowhere.json")


@pytest.mark.parametrize("key", ["self", "\ud800"])
def test_a_key_that_python_cannot_pass_on_is_an_unknown_field(key: str) -> None:
    with pytest.raises(ConfigError):
        TrainConfig.from_json(json.dumps({key: 1}), "f")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
CONFIG_TEXTS = st.dictionaries(st.sampled_from(field_names(TrainConfig)) | st.text(), JSON_VALUES).map(json.dumps)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(st.text() | JSON_VALUES.map(json.dumps) | CONFIG_TEXTS)
@example("{}")
@example('{"": ""}')
@example('{"max_steps": "0"}')
def test_any_text_gives_a_config_or_a_config_error(text: str) -> None:
    try:
        config = TrainConfig.from_json(text, "f")
    except ConfigError as exc:
        assert exc.field in str(exc)
    else:
        assert TrainConfig.from_json(config.model_dump_json(), "f") == config


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights",
            "from 16-bit weights and the qlora base has none",
        ),
        ({"init_lora_weights": "olora", "method": "lora-8bit"}, "init_lora_weights", "the lora-8bit base has none"),
        ({"init_lora_weights": "eva", "use_dora": True}, "use_dora", "cannot be combined with init_lora_weights eva"),
        ({"columns": "prompt"}, "columns", "'prompt' is not allowed; write NAME=COLUMN"),
        ({"columns": "answer=x"}, "columns", "with NAME one of messages, prompt, completion"),
        ({"target_modules": "q_proj; rm -rf"}, "target_modules", "give all-linear, attention, mlp, or module names"),
        ({"target_modules": "q_proj,"}, "target_modules", "is not allowed"),
        ({"parallel": "fsdp", "method": "lora-8bit"}, "parallel", "cannot shard an 8-bit base; choose ddp"),
        ({"parallel": "fsdp", "method": "lora", "init_lora_weights": "olora"}, "parallel", "what olora changes"),
    ],
)
def test_what_the_libraries_cannot_do_is_refused_where_it_is_chosen(
    values: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TrainConfig(**values)
    assert caught.value.field == field


def test_columns_and_modules_are_read_as_they_are_meant() -> None:
    assert column_mapping(" prompt=question , completion = answer") == {"prompt": "question", "completion": "answer"}
    assert column_mapping("") == {}
    assert target_names("all-linear") is None
    assert target_names("attention") == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert target_names("q_proj, self_attn.v_proj") == ("q_proj", "self_attn.v_proj")


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ({}, "nf4"),
        ({"bnb_4bit_use_double_quant": False}, "nf4-single"),
        ({"bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"method": "lora"}, "16bit"),
        ({"method": "lora-8bit"}, "int8"),
    ],
)
def test_the_form_of_the_base_follows_from_the_method(values: dict[str, Any], form: str) -> None:
    assert TrainConfig(**values).base_form == form
