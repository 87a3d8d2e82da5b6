"""Base models, 4-bit models, adapters: one loader each, every third-party error translated here.

Only safetensors are read and no remote code runs.  On a CPU with AVX512-BF16, bitsandbytes repacks each 4-bit weight
in place at the first inference forward; gradients and dequantization of a repacked layer are silently wrong.  So
`load_nf4` marks every layer for one use, and only ``use="inference"`` may repack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import torch
from huggingface_hub import constants, try_to_load_from_cache
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from ..catalog import BUNDLED_MODELS, bundled_path, is_fetched
from ..errors import AdapterError, ModelError
from ..records import Precision
from ..settings import Settings

disable_progress_bar()

Use = Literal["inference", "exact"]
"""``exact``: the stored 4-bit weights are never repacked, so training and dequantization are right."""

# Used where a base model brings no chat template of its own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{{ '\n\n' }}{% endfor %}"
    "{{ '### Assistant:\n' if add_generation_prompt }}"
)

_READ_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


def device() -> torch.device:
    """The one device that models live on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype() -> torch.dtype:
    """bfloat16, or float16 on a GPU that has no bfloat16."""
    return torch.bfloat16 if device().type == "cpu" or torch.cuda.is_bf16_supported() else torch.float16


def resolve(settings: Settings, model: str) -> str:
    """A bundled name, a local folder or a hub id -> what `from_pretrained` takes.

    Raises `ModelError` that says what was tried.
    """
    if model in BUNDLED_MODELS:
        if not is_fetched(settings, model):
            raise ModelError(
                f"model: {model} is not fetched yet; run `python -m qlora_demo fetch` or wait for the page to do it"
            )
        return str(bundled_path(settings, model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: folder {folder} holds no config.json; give a folder saved by save_pretrained")
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"model: folder {folder} holds no .safetensors file, and nothing else is read; convert the weights"
            )
        return str(folder.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model: {model!r} is no folder here; give {_known_models()}, an existing folder, or a hub id")
    return model


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, always with a chat template and a pad token."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
    except _READ_ERRORS as exc:
        raise _model_error(source, exc) from exc
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_16bit(source: str) -> PreTrainedModel:
    """The base model in the device's 16-bit type."""
    return _load(source, None)


def load_nf4(source: str, use: Use) -> PreTrainedModel:
    """The base model with its linear layers in 4-bit NF4 with double quantization."""
    model = _load(
        source,
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(),
        ),
    )
    if use == "exact":
        for layer in four_bit_layers(model):
            layer.support_avx512bf16_for_cpu = False
    return model


def load_dequantized(source: str) -> PreTrainedModel:
    """The base model as NF4 stores it, written out in 16 bit: what an adapter on NF4 was really trained against."""
    model = load_nf4(source, "exact").dequantize(dtype=compute_dtype())
    model.to(compute_dtype())
    return model


def load_adapter(base: PreTrainedModel, folder: Path) -> PeftModel:
    """An adapter on its base; raises `AdapterError` where it is missing, damaged or of another shape."""
    config = read_adapter_config(folder)
    try:
        return PeftModel.from_pretrained(base, str(folder), config=config, autocast_adapter_dtype=False).eval()
    except (*_READ_ERRORS, TypeError, AttributeError) as exc:
        raise AdapterError(
            f"adapter {folder}: does not fit the base model or is damaged ({_line(exc)}); train again"
        ) from exc


def read_adapter_config(folder: Path) -> PeftConfig:
    """An adapter's configuration, once both of its files are seen to be there."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise AdapterError(f"adapter {folder}: {name} is missing; train again or restore the file")
    try:
        return PeftConfig.from_pretrained(str(folder))
    except (*_READ_ERRORS, TypeError) as exc:
        raise AdapterError(f"adapter {folder}: adapter_config.json cannot be read ({_line(exc)}); train again") from exc


def four_bit_layers(model: nn.Module) -> list[bitsandbytes.nn.Linear4bit]:
    """Every 4-bit linear layer of a model."""
    return [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]


def precision_of(model: nn.Module) -> Precision:
    """The precision of the linear weights, read from the layers themselves."""
    if four_bit_layers(model):
        return "nf4"
    names: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return names[next(layer.weight.dtype for layer in base.modules() if isinstance(layer, nn.Linear))]


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of every parameter, buffer and quantization constant, each storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors(model)}
    return sum(storages.values())


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 20))


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    tensors = [*model.parameters(), *model.buffers()]
    for layer in four_bit_layers(model):
        state = layer.weight.quant_state
        nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        tensors += [state.absmax, state.code, *nested]
    return tensors


def _load(source: str, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=compute_dtype(),
            quantization_config=quantization,
            device_map={"": device()},
            use_safetensors=True,
        )
    except torch.OutOfMemoryError:
        raise
    except _READ_ERRORS as exc:
        raise _model_error(source, exc) from exc
    return model.eval()


def _model_error(source: str, exc: Exception) -> ModelError:
    if Path(source).is_dir():
        return ModelError(
            f"model: folder {source} cannot be read ({_line(exc)}); give a folder saved by save_pretrained"
        )
    tried = "the hub's cache" if constants.HF_HUB_OFFLINE else f"the hub at {constants.ENDPOINT}"
    cached = isinstance(try_to_load_from_cache(source, "config.json"), str)
    state = "it is cached only in part" if cached else "it is not cached"
    return ModelError(
        f"model: {source!r} is no bundled model and no folder, and {tried} did not give it ({state}; {_line(exc)}); "
        f"give {_known_models()}, a folder, or a hub id that can be reached"
    )


def _known_models() -> str:
    return " or ".join(BUNDLED_MODELS)


def _line(exc: Exception) -> str:
    text = " ".join(str(exc).split())
    return f"{type(exc).__name__}: {text[:200]}"
