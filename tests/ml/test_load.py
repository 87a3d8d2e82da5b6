"""Loaders: one each, errors that name the thing and the remedy, and no silent corruption of 4-bit weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from transformers.integrations import sdpa_attention

from qlora_demo.errors import AdapterError, DataError, ModelError
from qlora_demo.ml import device, load
from qlora_demo.settings import Settings
from qlora_demo.sources import resolve
from tests.tiny import save_adapter


def _gradient(model: Any) -> float:
    """Norm of the gradient that reaches the embeddings through all 4-bit layers."""
    model.train()
    embedding = model.get_input_embeddings().weight.requires_grad_(True)
    ids = torch.arange(3, 40).unsqueeze(0)
    model(input_ids=ids, labels=ids).loss.backward()
    return float(embedding.grad.norm())


def _evaluate(model: Any) -> None:
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(3, 40).unsqueeze(0))


@pytest.mark.parametrize(
    ("said", "memory"),
    [
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("CUDA driver error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes.", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_faults(said: str, memory: bool) -> None:
    assert device.ran_out(RuntimeError(said)) is memory


def test_a_file_is_no_fault_of_memory_by_its_name() -> None:
    assert not device.ran_out(DataError("dataset: there is no file out of memory.jsonl; check the path"))


@pytest.mark.parametrize(
    ("error", "told"), [(torch.OutOfMemoryError, torch.OutOfMemoryError), (ValueError, ModelError)]
)
def test_memory_that_ran_out_while_weights_were_quantized_is_told_as_such(
    tiny_model: Path, error: type[Exception], told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise error("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr("bitsandbytes.nn.Params4bit._quantize", failing)
    with pytest.raises(told):
        load.load_quantized(str(tiny_model), "exact")


def test_training_after_an_evaluation_has_the_gradients_of_a_fresh_model(tiny_model: Path) -> None:
    fresh, evaluated = (load.load_quantized(str(tiny_model), "exact") for _ in range(2))
    _evaluate(evaluated)
    assert _gradient(evaluated) == _gradient(fresh)


def test_dequantizing_after_an_evaluation_gives_the_weights_of_a_fresh_model(tiny_model: Path) -> None:
    expected = load.load_dequantized(str(tiny_model))
    evaluated = load.load_quantized(str(tiny_model), "exact")
    _evaluate(evaluated)
    actual = evaluated.dequantize(dtype=torch.bfloat16)
    for (name, ours), theirs in zip(actual.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit. an autograd kernel was not registered:UserWarning")
@pytest.mark.skipif(not has_avx512bf16(), reason="only a CPU with AVX512-BF16 repacks 4-bit weights")
def test_the_cure_is_needed_here(tiny_model: Path) -> None:
    """Without it the same evaluation ruins the gradients: this is what the two tests above guard."""
    uncured, fresh = load.load_quantized(str(tiny_model), "inference"), load.load_quantized(str(tiny_model), "exact")
    _evaluate(uncured)
    assert _gradient(uncured) != pytest.approx(_gradient(fresh), rel=0.01)


def test_precision_is_read_from_the_layers(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    assert load.precision_of(load.load_16bit(str(tiny_model))) == "bf16"
    assert load.precision_of(load.load_quantized(str(tiny_model), "exact")) == "nf4"
    assert load.precision_of(load.load_dequantized(str(tiny_model))) == "bf16"
    assert load.precision_of(load.load_adapter(load.load_16bit(str(tiny_model)), adapter)) == "bf16"


def test_a_4_bit_model_takes_less_memory_and_every_constant_is_counted(tiny_model: Path) -> None:
    four_bit = load.load_quantized(str(tiny_model), "exact")
    weights = sum(layer.weight.numel() for layer in load.four_bit_layers(four_bit))
    assert load.tensor_bytes(four_bit) < load.tensor_bytes(load.load_16bit(str(tiny_model)))
    assert load.tensor_bytes(four_bit) > weights + sum(p.nbytes for p in four_bit.parameters() if p.is_floating_point())


def test_bytes_of_8_bit_weights_hold_their_scales_before_and_after_the_first_pass(tiny_model: Path) -> None:
    model = load.load_quantized(str(tiny_model), "inference", "int8")
    layers = [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear8bitLt)]
    rest = [*(one for one in model.parameters() if one.dtype is not torch.int8), *model.buffers()]
    expected = sum(one.nbytes for one in rest) + sum(
        one.in_features * one.out_features + 4 * one.out_features for one in layers
    )
    for _ in range(2):
        assert load.tensor_bytes(model) == expected
        with torch.inference_mode():
            model(torch.arange(3, 12)[None])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instruct", "not fetched yet; run `python -m qlora_demo fetch`"),
        ("./nowhere", "is no folder here; give smollm2-135m-instruct"),
        ("a/b/c", "is no folder here"),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_name(home: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(Settings(home), name)


def test_a_folder_with_pickled_weights_only_is_refused(home: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds no \.safetensors file, and nothing else is read"):
        resolve(Settings(home), str(folder))


def test_a_hub_id_without_a_hub_says_what_was_tried(home: Path) -> None:
    source = resolve(Settings(home), "nobody/nothing")
    with pytest.raises(ModelError, match=r"no bundled model and no folder, and the hub's cache did not give it"):
        load.load_16bit(source)


def test_truncated_weights_are_reported_with_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=f"folder {folder} cannot be read"):
        load.load_16bit(str(folder))


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_with_a_missing_file_names_it(tiny_model: Path, tmp_path: Path, missing: str) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    (adapter / missing).unlink()
    with pytest.raises(AdapterError, match=f"{missing} is missing"):
        load.load_adapter(load.load_16bit(str(tiny_model)), adapter)


def test_a_damaged_or_foreign_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(AdapterError, match="does not fit the base model or is damaged"):
        load.load_adapter(load.load_16bit(str(tiny_model)), adapter)
    (adapter / "adapter_config.json").write_text("{not json", "utf-8")
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        load.load_adapter(load.load_16bit(str(tiny_model)), adapter)


def test_an_adapter_whose_rank_does_not_match_its_weights_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 8}), "utf-8")
    with pytest.raises(AdapterError, match=r"says rank \[8\] and its weights have \[4\]"):
        load.load_adapter(load.load_16bit(str(tiny_model)), adapter)


def test_a_base_without_a_chat_template_gets_a_plain_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer: Any = load.load_tokenizer(str(folder))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenize=False
    )
    assert text == "### User:\na\n\n### Assistant:\nb<|im_end|>\n\n"


def test_the_dequantized_base_keeps_its_rotary_frequencies_in_fp32(tiny_model: Path) -> None:
    ours, theirs = (dict(made(str(tiny_model)).named_buffers()) for made in (load.load_dequantized, load.load_16bit))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == torch.float32 and torch.equal(ours[name], theirs[name]) for name in ours)


def test_attaching_an_adapter_leaves_a_repacked_base_as_it_was(tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter")
    fresh = load.load_adapter(load.load_quantized(str(tiny_model), "inference"), adapter)
    base = load.load_quantized(str(tiny_model), "inference")
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        before = base(input_ids=ids).logits
        attached = load.load_adapter(base, adapter)
        assert torch.equal(attached(input_ids=ids).logits, fresh(input_ids=ids).logits)
        with attached.disable_adapter():
            assert torch.equal(attached(input_ids=ids).logits, before)


def test_sharded_4_bit_weights_are_stored_in_the_type_of_the_others(tiny_model: Path) -> None:
    plain, sharded = (load.load_quantized(str(tiny_model), "exact", sharded=shard) for shard in (False, True))
    assert {layer.weight.dtype for layer in load.four_bit_layers(plain)} == {torch.uint8}
    assert {layer.weight.dtype for layer in load.four_bit_layers(sharded)} == {torch.bfloat16}
    ids = torch.arange(3, 12)[None]
    with torch.inference_mode():
        assert torch.equal(plain(input_ids=ids).logits, sharded(input_ids=ids).logits)


@pytest.mark.parametrize("capability", [(7, 5), (8, 0)])
def test_grouped_keys_are_repeated_where_no_fast_kernel_takes_them(
    tiny_model: Path, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)  # to be put back
    monkeypatch.setattr(load, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(load, "compute_dtype", lambda: torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    attend, grouped = torch.nn.functional.scaled_dot_product_attention, set[bool]()

    def watched(*given: Any, **named: Any) -> torch.Tensor:
        grouped.add(named.get("enable_gqa", False))
        return attend(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    _evaluate(load.load_16bit(str(tiny_model), torch.device("cpu")))
    assert grouped == {capability >= (8, 0)}


def test_each_process_of_a_run_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device.device() == torch.device("cuda", 3)
    monkeypatch.delenv("LOCAL_RANK")
    assert device.device() == torch.device("cuda", 0)
