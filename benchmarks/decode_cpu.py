"""Where a token's time goes on the CPU, and whether `stream()` is as fast as plain `generate()`; ratios in one run.

    python -m benchmarks.decode_cpu [--rounds 7] [--new-tokens 48] [--threads N] [--out FILE]

Method: the bundled model is loaded as the library loads it and as the app does (packed).  Each round answers the same
prompt greedily with each of the ways, one after the other, so that what else the machine does falls on all of them; a
ratio is the median over the rounds of that round's own ratio.  Seconds are of the wall clock and of the processor (all
threads of this process), which a busy machine disturbs less.  Per token: a whole answer's time less its prefill's.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from qlora_demo.benchmark.runner import write_result_file
from qlora_demo.catalog import SMOLLM2, bundled_path
from qlora_demo.config import GenerationSettings
from qlora_demo.ml import load
from qlora_demo.ml.generate import encode, stream
from qlora_demo.ml.machine import versions
from qlora_demo.ml.packed import pack
from qlora_demo.ml.roofline import read_bandwidth
from qlora_demo.settings import Settings

ASKED = [{"role": "user", "content": "Tell me a long story about the sea and a ship. Start with the harbour."}]
Answer = Callable[[int], list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = str(bundled_path(Settings.from_environment(), SMOLLM2.name))
    tokenizer = load.load_tokenizer(folder)
    models = {"plain": load.load_16bit(folder), "packed": pack(load.load_16bit(folder))}
    result = {
        "method": " ".join(__doc__.split("Method: ")[1].split()),
        "machine": versions(),
        "model": SMOLLM2.name,
        "threads": args.threads,
        "new_tokens": args.new_tokens,
        "read_bytes": load.tensor_bytes(models["plain"]),
        "bandwidth_bytes_per_second": read_bandwidth(torch.device("cpu")),
        **compare(ways(models, tokenizer), args.rounds, args.new_tokens),
        "operators_ms_per_token": {name: operators(model) for name, model in models.items()},
        "prefill_seconds": prefill(models["plain"], encode(tokenizer, [ASKED])["input_ids"], args.rounds),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_result_file(args.out, result)


def ways(models: dict[str, Any], tokenizer: Any) -> dict[str, Answer]:
    """Every way to answer, by name; each gives the new tokens."""
    inputs = encode(tokenizer, [ASKED])

    def generated(model: Any) -> Answer:
        def answer(tokens: int) -> list[int]:
            with torch.inference_mode():
                out = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
            return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]

        return answer

    def streamed(model: Any) -> Answer:
        def answer(tokens: int) -> list[int]:
            *_, last = stream(model, tokenizer, ASKED, GenerationSettings(max_new_tokens=tokens))
            return list(last.token_ids)

        return answer

    kinds = {"generate": generated, "stream": streamed}
    return {f"{kind}, {name}": make(model) for name, model in models.items() for kind, make in kinds.items()}


def compare(answers: dict[str, Answer], rounds: int, tokens: int) -> dict[str, Any]:
    """Seconds of every way in every round, and the ratios that matter."""
    texts = {name: answer(tokens) for name, answer in answers.items()}
    taken = [{name: timed(answer, tokens) for name, answer in answers.items()} for _ in range(rounds)]
    ratios = {
        "stream over generate, plain": ("generate, plain", "stream, plain"),
        "stream over generate, packed": ("generate, packed", "stream, packed"),
        "packed over plain, stream": ("stream, plain", "stream, packed"),
        "the app over the library": ("generate, plain", "stream, packed"),
    }
    return {
        "same_tokens": {name: texts[slow] == texts[fast] for name, (slow, fast) in ratios.items()},
        "rounds": taken,
        "seconds_per_token": {
            name: {clock: median(one[name][clock] for one in taken) for clock in ("wall", "cpu")} for name in answers
        },
        "speed_ratio": {
            name: {clock: median(one[slow][clock] / one[fast][clock] for one in taken) for clock in ("wall", "cpu")}
            for name, (slow, fast) in ratios.items()
        },
    }


def timed(answer: Answer, tokens: int) -> dict[str, float]:
    """Seconds per token after the first: an answer of all tokens less one of a single token."""
    wall, cpu = [], []
    for count in (1, tokens):
        started = time.perf_counter(), time.process_time()
        answer(count)
        wall.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return {"wall": (wall[1] - wall[0]) / (tokens - 1), "cpu": (cpu[1] - cpu[0]) / (tokens - 1)}


def prefill(model: Any, ids: torch.Tensor, rounds: int) -> dict[str, float]:
    """Processor seconds of a prompt's pass: weights that ask for gradients, frozen ones, and frozen ones packed; the
    model is packed afterwards."""
    taken: dict[str, list[float]] = {"weights that ask for gradients": [], "frozen weights": []}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, asks in zip(taken, (True, False), strict=True):
                model.requires_grad_(asks)
                taken[name].append(processor_seconds(model, ids))
        packed = pack(model)
        taken["frozen weights, packed"] = [processor_seconds(packed, ids) for _ in range(rounds)]
    return {name: median(values) for name, values in taken.items()}


def processor_seconds(model: Any, ids: torch.Tensor) -> float:
    started = time.process_time()
    model(ids, logits_to_keep=1)
    return time.process_time() - started


def operators(model: Any, tokens: int = 10) -> dict[str, float]:
    """Milliseconds per token of the operators that take most of it, by the profiler's own count."""
    with torch.inference_mode():
        cache = model(torch.arange(3, 43)[None], use_cache=True).past_key_values
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(tokens):
                model(torch.tensor([[7]]), past_key_values=cache, use_cache=True)
    by_time = sorted(seen.key_averages(), key=lambda event: -event.self_cpu_time_total)
    taken = {event.key: event.self_cpu_time_total / 1000 / tokens for event in by_time}
    return dict(list(taken.items())[:8]) | {"all": sum(taken.values())}


if __name__ == "__main__":
    main()
