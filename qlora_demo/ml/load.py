"""Base models, 4-bit models, adapters: one loader each, every third-party error translated here.

Only safetensors are read and no remote code runs.  On a CPU with AVX512-BF16, bitsandbytes repacks each 4-bit weight
in place at the first inference forward; gradients and dequantization of a repacked layer are silently wrong.  So
`load_quantized` marks every layer for one use, and only ``use="inference"`` may repack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import bitsandbytes
import torch
from peft import PeftConfig, PeftModel, PeftModelForCausalLM
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    core_model_loading,
)
from transformers.integrations import sdpa_attention
from transformers.utils.logging import disable_progress_bar

from ..catalog import is_shape
from ..errors import AdapterError, DemoError, ModelError, one_line
from ..records import BaseForm, Precision
from ..sources import ADAPTER_FILES, not_given
from .adapter_check import check_adapter, check_landed
from .device import compute_dtype, device, ran_out
from .peak import nothing_hoarded
from .products import widen_products
from .shapes import build_shape, shape_config, shape_tokenizer

disable_progress_bar()

_QUANTIZED = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
_keep_error = core_model_loading.log_conversion_errors
Use = Literal["inference", "exact", "training"]
"""Only for ``inference`` may stored 4-bit weights be repacked: training and dequantization would be wrong.  For
``training`` the weights are frozen, and multiplied in what the device is fastest in."""

# Used where a base model brings no chat template of its own.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' }}{{ '\n\n' }}{% endfor %}"
    "{{ '### Assistant:\n' if add_generation_prompt }}"
)


@contextmanager
def _keep_all_but_memory(*given: Any) -> Iterator[None]:
    """The library's way with a weight that it cannot convert is to tell at the end, and not what was wrong with it."""
    try:
        with _keep_error(*given):
            yield
    except core_model_loading.SkipParameters as exc:
        if exc.__context__ and ran_out(exc.__context__):
            raise exc.__context__ from None
        raise


core_model_loading.log_conversion_errors = _keep_all_but_memory


def repeat_grouped_keys_on_old_gpus() -> None:
    """Below compute capability 8, repeat grouped keys and values, so that the memory-efficient kernel takes them.

    Without padding the library hands them to torch as they are, which only the flash kernel, of newer GPUs, and the
    plain one take; the plain one keeps a score for every pair of tokens.
    """
    if device().type == "cuda" and torch.cuda.get_device_capability(device()) < (8, 0):
        sdpa_attention.use_gqa_in_sdpa = lambda *_: False


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer, always with a chat template and a pad token, and never with padding or truncation of its own: the
    file of one that was saved after a padded batch asks for both."""
    if is_shape(source):
        return shape_tokenizer(source)
    with _translated(partial(_model_error, source)):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


def load_16bit(source: str, on: torch.device | None = None, *, attention: str | None = None) -> PreTrainedModel:
    """The base model in the device's 16-bit type, on the device or where it is wanted; ``attention`` names a kernel
    other than the library's own choice."""
    return _load(source, None, on or device(), attention)


def load_base(
    source: str, form: BaseForm, use: Use, *, sharded: bool = False, attention: str | None = None
) -> PreTrainedModel:
    """The base model as a run's base is stored: in 16 bit or quantized."""
    if form == "16bit":
        model = load_16bit(source, attention=attention)
    else:
        model = load_quantized(source, use, form, sharded=sharded, attention=attention)
    if use == "training":
        widen_products(model)
    return model


def load_quantized(
    source: str,
    use: Use,
    form: BaseForm = "nf4",
    on: torch.device | None = None,
    *,
    sharded: bool = False,
    attention: str | None = None,
) -> PreTrainedModel:
    """The base model with its linear layers, but the head, in 4-bit NF4 or FP4, or in 8 bit (LLM.int8).

    ``sharded``: 4-bit weights are stored in the type of the others, without which FSDP2 leaves them whole.
    """
    if form == "int8":
        return _load(source, BitsAndBytesConfig(load_in_8bit=True), on or device(), attention)
    kind, _, single = form.partition("-")
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=not single,
        bnb_4bit_compute_dtype=compute_dtype(),
        bnb_4bit_quant_storage=compute_dtype() if sharded else torch.uint8,
    )
    model = _load(source, quantization, on or device(), attention)
    return model if use == "inference" else keep_exact(model)


def keep_exact(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose 4-bit weights no forward pass will repack."""
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = False
    return model


def load_dequantized(source: str, form: BaseForm = "nf4", on: torch.device | None = None) -> PreTrainedModel:
    """The base model as it is stored quantized, written out in 16 bit: what an adapter was really trained against."""
    model = load_quantized(source, "exact", form, on).dequantize(dtype=compute_dtype())
    for parameter in model.parameters():  # not buffers: rotary frequencies stay in fp32
        parameter.data = parameter.data.to(compute_dtype())
    return model


def quantize_nf4(model: PreTrainedModel, on: torch.device) -> PreTrainedModel:
    """The model on a device with every linear layer but the head replaced by its NF4 form, one layer at a time."""
    head = model.get_output_embeddings()
    plain = [name for name, layer in model.named_modules() if type(layer) is nn.Linear and layer is not head]
    for name in plain:  # by their names, so that none of them is kept
        model.set_submodule(name, four_bit(model.get_submodule(name), on))
    return model.to(on).eval()


def load_adapter(base: PreTrainedModel | PeftModel, folder: Path, name: str = "default") -> PeftModel:
    """An adapter on its base, beside those that are on it already.

    Raises `AdapterError` where it is missing, damaged, of another shape, or of layers that the base has not.
    """
    config = read_adapter_config(folder)
    check_adapter(config, folder)
    config.inference_mode = True
    options: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
    with (
        _translated(partial(_adapter_error, folder, "does not fit the base model or is damaged")),
        _packing_hidden(base),
    ):
        model = base if isinstance(base, PeftModel) else PeftModelForCausalLM(base, config, **options)
        landed = model.load_adapter(str(folder), **options)
    check_landed(landed, folder, name)
    return model.eval()


def read_adapter_config(folder: Path) -> PeftConfig:
    """An adapter's configuration, once both of its files are seen to be there."""
    for name in ADAPTER_FILES:
        if not (folder / name).is_file():
            raise AdapterError(f"adapter {folder}: {name} is missing; train again or restore the file")
    with _translated(partial(_adapter_error, folder, "adapter_config.json cannot be read")):
        return PeftConfig.from_pretrained(str(folder))


def four_bit_layers(model: nn.Module) -> list[bitsandbytes.nn.Linear4bit]:
    """Every 4-bit linear layer of a model."""
    return [layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear4bit)]


def precision_of(model: nn.Module) -> Precision:
    """The precision of the linear weights, read from the layers themselves."""
    return stored_in(model.get_submodule(telling_layer(model)))


def telling_layer(model: nn.Module) -> str:
    """The name of the linear layer whose weights say how a model's are stored: a quantized one where there is any."""
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    names: list[str] = [name for name, layer in linear.items() if isinstance(layer, _QUANTIZED)] or list(linear)
    return names[0]


def stored_in(layer: Any) -> Precision:
    """How a linear layer's weights are stored, now."""
    if isinstance(layer, bitsandbytes.nn.Linear4bit):
        kind: Precision = layer.weight.quant_type
        return kind
    if isinstance(layer, bitsandbytes.nn.Linear8bitLt):
        return "int8"
    names: dict[torch.dtype, Precision] = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return names[layer.weight.dtype]


def tensor_bytes(model: nn.Module, leave_out: Callable[[str], bool] = lambda name: False) -> int:
    """Bytes of every parameter, buffer and quantization constant, each storage counted once; without the parameters
    whose names `leave_out` picks."""
    tensors = _tensors(model, leave_out)
    plain = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if not t.is_mkldnn}
    packed = (int(torch.ops.mkldnn._nbytes(t)) for t in tensors if t.is_mkldnn)
    return sum(plain.values()) + sum(packed)


def untied_table_bytes(model: PreTrainedModel) -> int:
    """Bytes of an embedding table of its own: a token reads one row of it, where a tied one is read whole as the
    head."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return 0 if table is head else table.nbytes


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence the model was made for, in tokens."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 20))


def _tensors(model: nn.Module, leave_out: Callable[[str], bool]) -> list[torch.Tensor]:
    tensors = [*(tensor for name, tensor in model.named_parameters() if not leave_out(name)), *model.buffers()]
    for layer in four_bit_layers(model):
        state = layer.weight.quant_state
        nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        tensors += [state.absmax, state.code, *nested]
    for eight_bit in (layer for layer in model.modules() if isinstance(layer, bitsandbytes.nn.Linear8bitLt)):
        scales = (eight_bit.weight.SCB, eight_bit.state.SCB)  # the latter since its first pass
        tensors += [found for found in scales if found is not None]
    return tensors


@contextmanager
def _packing_hidden(model: nn.Module) -> Iterator[None]:
    """Keep `state_dict`, which PEFT asks for, from unpacking repacked layers: their constants would be rounded."""
    states = (layer.weight.quant_state for layer in four_bit_layers(model))
    packed = [state for state in states if getattr(state, "packing_format_for_cpu", False)]
    for state in packed:
        state.packing_format_for_cpu = False
    try:
        yield
    finally:
        for state in packed:
            state.packing_format_for_cpu = True


def four_bit(layer: nn.Linear, on: torch.device | None = None) -> bitsandbytes.nn.Linear4bit:
    """A linear layer in NF4 with double quantization, quantized on the layer's device or where it is wanted."""
    stored: dict[str, Any] = {"compress_statistics": True, "quant_type": "nf4"}
    made = bitsandbytes.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, layer.weight.dtype, device="meta", **stored
    )
    made.weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, **stored)
    made.bias = layer.bias
    return made.to(on or layer.weight.device)


def read_config(source: str) -> PreTrainedConfig:
    """The configuration of a resolved base model; its weights are not read."""
    if is_shape(source):
        return shape_config(source)
    with _translated(partial(_model_error, source)):
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config


@nothing_hoarded()
def _load(
    source: str, quantization: BitsAndBytesConfig | None, on: torch.device, attention: str | None
) -> PreTrainedModel:
    repeat_grouped_keys_on_old_gpus()
    if is_shape(source):
        return build_shape(source, quantization, compute_dtype(), (on, attention))
    config = read_config(source)
    with _translated(partial(_model_error, source)):
        model: PreTrainedModel
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=compute_dtype(),
            quantization_config=quantization,
            device_map={"": on},
            use_safetensors=True,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):  # which the library would fill with chance
        raise ModelError(f"model: {source} holds no {missing[0]} ({len(missing)} missing in all); fetch it again")
    return model.eval()


@contextmanager
def _translated(error: Callable[[Exception], DemoError]) -> Iterator[None]:
    """Raise ours for theirs, whose class may be any where a file is damaged or hostile; no room is another matter, and
    is dealt with where memory is."""
    try:
        yield
    except Exception as exc:
        if ran_out(exc):
            raise
        raise error(exc) from exc


def _model_error(source: str, exc: Exception) -> ModelError:
    if Path(source).is_dir():
        return ModelError(
            f"model: folder {source} cannot be read ({_line(exc)}); give a folder saved by save_pretrained"
        )
    return not_given(source, exc)


def _adapter_error(folder: Path, what: str, exc: Exception) -> AdapterError:
    return AdapterError(f"adapter {folder}: {what} ({_line(exc)}); train again")


def _line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {one_line(exc)}"
