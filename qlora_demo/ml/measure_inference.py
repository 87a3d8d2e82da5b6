"""Answers measured: time to first token and per output token of one column, by prompt length and batch."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from ..benchmark.cases import Case
from ..benchmark.config import BenchmarkConfig
from ..columns import parse
from ..config import GenerationSettings, TrainConfig
from ..errors import one_line
from ..records import percentile_95
from ..runs import ADAPTER_WEIGHTS, RunStore
from ..settings import Settings
from ..sources import BASE_FORM_FILE, resolve
from .device import compute_dtype, device, ran_out
from .generate import decode
from .load import context_length, read_config
from .measure_training import synchronize
from .peak import give_back, peak_memory_bytes, reset_peak
from .roofline import read_bandwidth
from .trainer import lora_config
from .variants import Loaded, Variants

_FIRST_ID, _SEED, _STD = 3, 0, 0.01


@dataclass(frozen=True)
class Timed:
    """One answer, in seconds: to the first token, the rest of the answer per token, and of each pass after the first
    where those are told; ``decode``: how it decoded."""

    ttft: float
    per_token: float
    passes: tuple[float, ...] = ()
    decode: str = ""


def measure_inference(case: Case, options: BenchmarkConfig, settings: Settings) -> Iterator[dict[str, Any]]:
    """One row per prompt length and batch; what does not fit is a row that says so."""
    with TemporaryDirectory() as folder:
        source = options.run or str(random_adapter(case.config, settings, Path(folder) / "adapter"))
        variants = Variants(settings, RunStore(settings.runs))
        column = parse(case.column, source)
        for _ in variants.load([column]):
            pass
        loaded = replace(variants.loaded[column.name], stops=())
        bandwidth = read_bandwidth(device())
        sizes = itertools.product(options.numbers("prompt_tokens"), options.numbers("batch_sizes"))
        for tokens, rows in sorted(sizes, key=lambda size: size[1] > 1):  # one row first: a captured step is its alone
            yield {"prompt_tokens": tokens, "batch": rows} | _row(loaded, options, (rows, tokens), bandwidth)


def random_adapter(config: TrainConfig, settings: Settings, folder: Path) -> Path:
    """Write an adapter with random values for a config's model, whose weights are not read: speed does not depend on
    them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read_config(resolve(settings, config.model)), dtype=compute_dtype())
    adapted = get_peft_model(model, lora_config(config))
    random = torch.Generator().manual_seed(_SEED)
    values = {
        name: torch.empty(meta.shape, dtype=compute_dtype()).normal_(std=_STD, generator=random)
        for name, meta in get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    }
    folder.mkdir(parents=True)
    kind = adapted.peft_config["default"]
    kind.base_model_name_or_path = config.model
    kind.inference_mode = True
    kind.save_pretrained(folder)
    save_file(values, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / BASE_FORM_FILE).write_text(json.dumps({"base_form": config.base_form}), "utf-8")
    return folder


def _row(loaded: Loaded, options: BenchmarkConfig, size: tuple[int, int], bandwidth: float) -> dict[str, Any]:
    longest = context_length(loaded.model)
    if size[1] + options.new_tokens > longest:
        return {"fits": False, "error": f"the model's context of {longest} tokens is too short"}
    if size[0] > 1:
        loaded.weights.drop_steps()
    give_back()
    try:
        return _figures(loaded, options, size, bandwidth)
    except (RuntimeError, MemoryError) as exc:
        if not ran_out(exc):
            raise
        error = f"out of memory ({one_line(exc)})"
    give_back()
    return {"fits": False, "error": error}


def _figures(loaded: Loaded, options: BenchmarkConfig, size: tuple[int, int], bandwidth: float) -> dict[str, Any]:
    inputs = _prompts(loaded, size)
    if size[0] == 1:
        loaded.fast.prepare(size[1] + options.new_tokens)
    reset_peak()
    _decoded(loaded, inputs, options.new_tokens)
    peak = peak_memory_bytes()
    _generated(loaded, inputs, options.new_tokens)
    ours, theirs = [], []
    for _ in range(options.repeats):
        ours.append(_decoded(loaded, inputs, options.new_tokens))
        theirs.append(_generated(loaded, inputs, options.new_tokens))
    tpot = statistics.median(seconds for one in ours for seconds in one.passes)
    return {
        "decode": ours[-1].decode,
        "repeats": options.repeats,
        "new_tokens": options.new_tokens,
        "ttft_median_seconds": statistics.median(one.ttft for one in ours),
        "tpot_median_seconds": tpot,
        "tpot_p95_seconds": percentile_95([seconds for one in ours for seconds in one.passes]),
        "tokens_per_second": size[0] / tpot,
        "bandwidth_bytes_per_second": bandwidth,
        "generate_ttft_median_seconds": statistics.median(one.ttft for one in theirs),
        "generate_tpot_median_seconds": statistics.median(one.per_token for one in theirs),
        "over_generate": over_generate(ours, theirs),
        "model_bytes": loaded.resident.model_bytes,
        "read_bytes": loaded.resident.read_bytes,
        "precision": loaded.resident.precision,
        "peak_bytes": peak,
    }


def over_generate(ours: Sequence[Timed], theirs: Sequence[Timed]) -> float:
    """How many times as fast as the library's our tokens after the first come: of each repeat's two answers, which met
    the same machine, the median."""
    return statistics.median(their.per_token / our.per_token for our, their in zip(ours, theirs, strict=True))


def _prompts(loaded: Loaded, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    vocabulary = loaded.model.config.get_text_config().vocab_size
    ids = torch.randint(_FIRST_ID, vocabulary, size, generator=torch.Generator().manual_seed(_SEED))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _decoded(loaded: Loaded, inputs: dict[str, torch.Tensor], new_tokens: int) -> Timed:
    """Through the app's own loop."""
    settings = GenerationSettings(max_new_tokens=new_tokens)
    steps, ends = [], []
    for step in decode(loaded.model, inputs, settings, loaded.activate, loaded.fast):
        steps.append(step)
        ends.append(time.perf_counter())
    first, *rest = [step.seconds for step in steps]
    return Timed(first, (ends[-1] - ends[0]) / len(rest), tuple(rest), steps[-1].decode)


def _generated(loaded: Loaded, inputs: dict[str, torch.Tensor], new_tokens: int) -> Timed:
    """Through the library's `generate()`, once for the first token and once for all: it tells no more."""
    first, whole = (_seconds(loaded, inputs, tokens) for tokens in (1, new_tokens))
    return Timed(first, (whole - first) / (new_tokens - 1))


def _seconds(loaded: Loaded, inputs: dict[str, torch.Tensor], new_tokens: int) -> float:
    placed = {name: tensor.to(device()) for name, tensor in inputs.items()}
    synchronize()
    started = time.perf_counter()
    with torch.inference_mode(), loaded.activate():
        loaded.model.generate(**placed, do_sample=False, max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    synchronize()
    return time.perf_counter() - started
