"""Layers as one function: whichever asks writes into its own part of the cache, and all is as before afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, StaticCache

from qlora_demo.ml import load
from qlora_demo.ml.fast_step import FastPath
from qlora_demo.ml.layer_pass import LayerPasses, layer_pass
from tests.ml.test_fast_step import READY, Rerun


def filled(model: Any) -> StaticCache:
    """A cache that holds a prompt."""
    cache = StaticCache(config=model.config, max_cache_len=32)
    model(input_ids=torch.arange(1, 9)[None], past_key_values=cache, use_cache=True)
    return cache


@torch.inference_mode()
def test_each_layer_writes_into_its_own_part_and_is_as_before_afterwards(tiny_model: Path) -> None:
    model = load.load_16bit(str(tiny_model))
    layers = list(model.get_decoder().layers)
    cache, plain = filled(model), filled(model)
    token: dict[str, Any] = {"input_ids": torch.tensor([[5]]), "use_cache": True}
    with LayerPasses(layers, cache, layer_pass).first(len(layers)):
        found = model(**token, past_key_values=cache).logits
        assert {layer.self_attn.layer_idx for layer in layers} == {0}
    assert torch.equal(found, model(**token, past_key_values=plain).logits)
    for ours, theirs in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys) and torch.equal(ours.values, theirs.values)
    assert [layer.self_attn.layer_idx for layer in layers] == list(range(len(layers)))
    assert not any("forward" in vars(layer) for layer in layers)


def test_a_model_that_names_the_cache_otherwise_has_a_step_too() -> None:
    sizes: dict[str, int] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=64, vocab_size=99)).eval()
    assert FastPath(model, recorders=[Rerun(lambda forward: forward)]).prepare() == READY


@torch.inference_mode()
def test_a_layer_that_is_not_given_the_cache_is_not_run(tiny_model: Path) -> None:
    model = load.load_16bit(str(tiny_model))
    layers = list(model.get_decoder().layers)
    with (
        LayerPasses(layers, filled(model), layer_pass).first(1),
        pytest.raises(TypeError, match="LlamaDecoderLayer is not given the cache"),
    ):
        layers[0](torch.zeros(1, 1, model.config.hidden_size, dtype=model.dtype), past_key_values=None)
