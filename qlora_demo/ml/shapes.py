"""A model of a known shape with random weights, built on the device: memory and speed do not depend on the values.

``shape:llama-2-7b`` stands wherever a base model does.  Nothing is downloaded, and while it is built one layer's
16-bit weight is all that is needed beyond the finished model: each is made, quantized and forgotten in turn.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.quantizers import AutoHfQuantizer

from ..catalog import shape_named

_CONTEXT_TOKENS = 32768
_STD = 0.02
_MARKS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shape_config(source: str) -> PreTrainedConfig:
    """The transformers config of ``shape:NAME``."""
    _, shape = shape_named(source)
    dimensions = asdict(shape)
    del dimensions["qk_norm"]  # the family's own
    config = AutoConfig.for_model(
        dimensions.pop("family"),
        **dimensions,
        max_position_embeddings=_CONTEXT_TOKENS,
        bos_token_id=None,
        eos_token_id=_MARKS.index("<|im_end|>"),
        pad_token_id=_MARKS.index("<|pad|>"),
    )
    config.name_or_path = source
    return config


def build_shape(
    source: str, quantization: BitsAndBytesConfig | None, dtype: torch.dtype, where: tuple[torch.device, str | None]
) -> PreTrainedModel:
    """The model of ``shape:NAME``, its weights drawn from a seed that each one's name gives.

    ``where``: the device, and the attention's implementation (None: the library's choice).
    """
    on, attention = where
    config = shape_config(source)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    quantizer = None if quantization is None else AutoHfQuantizer.from_config(quantization)
    if quantizer is not None:
        quantizer.preprocess_model(model, device_map={"": on})
    shared = model.get_output_embeddings() if config.tie_word_embeddings else None
    for name, module in list(model.named_modules()):
        if module is not shared:
            _fill(name, module, dtype, on)
    model.tie_weights()
    _fill_buffers(model, on)
    if quantizer is not None:
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    return model.eval()


def shape_tokenizer(source: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with a ChatML template; it uses the first 259 entries of the shape's vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({token: at for at, token in enumerate((*_MARKS, *alphabet))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        name_or_path=source,
    )
    tokenizer.chat_template = _CHATML
    return tokenizer


def _fill(name: str, module: nn.Module, dtype: torch.dtype, on: torch.device) -> None:
    """Give a module's own meta parameters values; assigning one quantizes it where the layer is a quantized one."""
    for field, meta in list(module.named_parameters(recurse=False)):
        values: Any = torch.empty(meta.shape, dtype=dtype, device=on)
        if meta.dim() > 1:
            values.normal_(std=_STD, generator=_generator(f"{name}.{field}", on))
        else:
            values.fill_(0.0 if field == "bias" else 1.0)
        if type(meta) is nn.Parameter:
            made: Any = nn.Parameter(values, requires_grad=meta.requires_grad)
        else:  # Params4bit is quantized by moving it to the device, Int8Params by moving it there from the processor
            given = values if hasattr(meta, "quant_type") else values.cpu()
            made = type(meta)(given, **_kept(meta)).to(on)
        setattr(module, field, made)


def _kept(meta: Any) -> dict[str, Any]:
    """How a quantized parameter is stored, without the values that it has not got."""
    if hasattr(meta, "quant_type"):
        names = ["quant_type", "compress_statistics", "quant_storage", "blocksize", "module"]
    else:
        names = ["has_fp16_weights"]
    return {"requires_grad": False} | {name: getattr(meta, name) for name in names if hasattr(meta, name)}


def _fill_buffers(model: PreTrainedModel, on: torch.device) -> None:
    """The rotary frequencies are computed when their module is made, which on the meta device gave no values."""
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            made: Any = type(module)
            model.set_submodule(name, made(model.config).to(on))


def _generator(name: str, on: torch.device) -> torch.Generator:
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest())
    return torch.Generator(on).manual_seed(seed)
