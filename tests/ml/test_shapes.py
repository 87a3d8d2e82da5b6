"""Shapes with random weights: the real parameter counts, one set of values in every form, little memory to build."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from qlora_demo.catalog import SHAPES, is_shape, shape_named
from qlora_demo.errors import ModelError
from qlora_demo.memory import ModelShape
from qlora_demo.ml.load import (
    four_bit_layers,
    load_base,
    load_dequantized,
    load_tokenizer,
    precision_of,
    read_config,
    tensor_bytes,
)
from qlora_demo.settings import Settings
from qlora_demo.sources import resolve, shape_of, weights_digest

TINY = "shape:tiny"


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama-2-7b", 6_738_415_616), ("llama-3.1-8b", 8_030_261_248), ("mistral-7b", 7_248_023_552)],
)
def test_a_shape_has_its_models_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(f"shape:{name}"))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_planned_is_what_is_built(name: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(f"shape:{name}"))
    made = {id(parameter): parameter.numel() for parameter in model.parameters()}
    shape = SHAPES[name]
    assert sum(made.values()) == shape.linear_parameters + shape.other_parameters


def test_every_form_holds_the_same_values() -> None:
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        whole, again = (load_base(TINY, "16bit", "exact")(ids).logits for _ in range(2))
        four = load_base(TINY, "nf4", "exact")
        quantized, written_out = four(ids).logits, load_dequantized(TINY)(ids).logits
    assert torch.equal(whole, again)
    assert torch.equal(quantized, written_out)
    assert 0 < (quantized - whole).norm() < 0.6 * whole.norm()
    assert (precision_of(four), len(four_bit_layers(four))) == ("nf4", 14)
    assert precision_of(load_base(TINY, "int8", "exact")) == "int8"
    assert torch.isfinite(whole).all()


def test_building_takes_little_more_than_the_finished_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it, one 16-bit layer and what quantizing it needs on a CPU: a copy in fp32 and its blocks."""
    load_base(TINY, "nf4", "exact")
    shape = ModelShape(256, 512, 6, 4, 4, 64, 16384, True)
    monkeypatch.setitem(SHAPES, "tried", shape)
    largest = 2 * max(inputs * outputs for inputs, outputs in shape.linear_sizes().values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = load_base("shape:tried", "nf4", "exact")
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert most < tensor_bytes(model) + 12 * largest < 2 * (shape.linear_parameters + shape.other_parameters)


def test_its_tokenizer_takes_any_text_and_gives_it_back() -> None:
    tokenizer = load_tokenizer("shape:qwen3-8b")
    text = "Grüße, 你好 <b>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template and tokenizer.eos_token_id == read_config("shape:qwen3-8b").eos_token_id


def test_a_shape_stands_where_a_model_does(tmp_path: object) -> None:
    settings = Settings.from_environment({"QLORA_DEMO_HOME": str(tmp_path)})
    assert resolve(settings, TINY) == TINY and is_shape(TINY)
    assert shape_of(TINY) == shape_named(TINY)[1]
    assert weights_digest(TINY) != weights_digest("shape:smollm2-135m")
    with pytest.raises(ModelError, match="'shape:gpt-5' is no shape that is known; write shape: and one of tiny, "):
        resolve(settings, "shape:gpt-5")
