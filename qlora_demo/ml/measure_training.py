"""Training measured: memory by phase, time of a step, and how far a budget of memory goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import TrainerCallback
from trl import SFTTrainer

from ..benchmark.cases import WARM_UP_STEPS, Case, largest
from ..benchmark.config import BenchmarkConfig
from ..config import MOST_TOKENS, TrainConfig
from ..errors import NoRoom
from ..memory import ModelShape
from ..plan.alternatives import Comparison, compare
from ..plan.choices import Chosen, choose, refuse
from ..plan.flops import train_flops
from ..plan.memory_plan import On, parse_memory
from ..records import percentile_95
from ..settings import Settings
from ..sources import resolve, shape_of
from ..units import memory
from .data import Splits, load_splits
from .device import device, ran_out
from .load import load_base, load_tokenizer
from .peak import give_back, paged_bytes, peak_memory_bytes, reset_peak
from .roofline import matmul_rate
from .train import score_answers
from .trainer import build_trainer, device_kind, loss_kernels, make_trainer, situation

_NEVER = 100_000
_FRONTIER_STEPS = 2
_STEPS_OF_P95 = 20
"""Of fewer, the 95th percentile is the longest."""
_NEARLY = 0.1
"""Of a budget, by which a card sold by that name may miss it."""
_FIRST_ID, _SEED = 3, 0
_MOST_ROWS, _GRAIN_TOKENS = 1024, 64


def measure_training(case: Case, options: BenchmarkConfig, settings: Settings) -> Iterator[dict[str, Any]]:
    """One row: peaks by phase, step time, tokens/s, and the score where the settings' own rows are trained."""
    config, splits = _prepared(case.config, options, settings)
    shape = shape_of(resolve(settings, config.model))
    give_back()
    reset_peak()
    with TemporaryDirectory() as folder:
        trainer, chosen = build_trainer(Path(folder), config, settings, splits)
        phases = Phases(trainer)
        trainer.add_callback(phases)
        trainer.train()
        figures = phases.figures()
    trained, total = trainer.model.get_nb_trainable_parameters()
    row = {
        **figures,
        "device_peak_bytes": device_peak_bytes(figures["peak_bytes"]),
        "trainable_parameters": trained,
        "all_parameters": total,
        "checkpointing": chosen.gradient_checkpointing,
        "optim": chosen.optim,
        "kernels": chosen.kernels,
        "fp16": chosen.fp16,
        "fp32_products": chosen.fp32_products,
        "shape": asdict(shape),
    }
    if config.score_rows:
        yield row | {"score": score_answers(trainer, splits.heldout["test"][: config.score_rows])}
        return
    rate = matmul_rate(device())
    needed = train_flops(shape, trained, config.max_length) * row["tokens_per_second"]
    yield row | {"matmul_flops_per_second": rate, "flops_share": needed / rate}


def measure_frontier(case: Case, options: BenchmarkConfig, settings: Settings) -> Iterator[dict[str, Any]]:
    """One row: the longest row and the largest batch that train within the budget, and every try."""
    asked = parse_memory(options.gpu_memory)
    refuse(case.config, device_kind())
    source = resolve(settings, case.config.model)
    shape = shape_of(source)
    budget = limit_memory(asked)
    loaded = [load_base(source, case.config.base_form, "training"), load_tokenizer(source)]
    tries: list[dict[str, Any]] = []

    def fits(rows: int, tokens: int) -> bool:
        config = case.config.changed(
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            max_length=tokens,
            max_steps=_FRONTIER_STEPS,
        )
        tries.append({"rows": rows, "tokens": tokens} | _try(config, shape, loaded, budget))
        return bool(tries[-1]["fits"])

    chosen = choose(case.config, shape, situation(loaded[0].config.model_type))
    reckoned = _compared(shape, case.config, chosen, budget)
    reckoned_row = _compared(shape, case.config.changed(per_device_train_batch_size=1), chosen, budget).longest_row
    most = min(MOST_TOKENS, int(loaded[0].config.get_text_config().max_position_embeddings))
    longest = largest(lambda tokens: fits(1, tokens), reckoned_row, most, _GRAIN_TOKENS)
    batch = largest(lambda rows: fits(rows, case.config.max_length), reckoned.largest_batch, _MOST_ROWS, 1)
    found = {
        "longest_row": longest,
        "planned_longest_row": min(reckoned_row, most),
        "largest_batch": batch,
        "planned_largest_batch": min(reckoned.largest_batch, _MOST_ROWS),
    }
    limits = {"longest_row": most // _GRAIN_TOKENS * _GRAIN_TOKENS, "largest_batch": _MOST_ROWS}
    yield {
        **found,
        "capped": [name for name, size in found.items() if size >= limits[name.removeprefix("planned_")]],
        "batch_row_tokens": case.config.max_length,
        "budget_bytes": budget,
        "note": _held_lower(asked, budget),
        "tries": tries,
    }


class Phases(TrainerCallback):
    """Watches one step's phases for memory and times the steps after it; seconds on the synchronised device."""

    def __init__(self, trainer: SFTTrainer) -> None:
        self.trainer = trainer
        self.peaks: dict[str, int] = {"load_peak_bytes": peak_memory_bytes()}
        self.seconds: list[float] = []
        self._tokens: list[int] = []
        self._watching = False
        self._began = 0.0
        trainer.compute_loss = self._watched("forward_peak_bytes", trainer.compute_loss)
        trainer.accelerator.backward = self._watched("backward_peak_bytes", trainer.accelerator.backward)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._watching = state.global_step == WARM_UP_STEPS - 1
        if state.global_step == WARM_UP_STEPS:
            reset_peak()
        synchronize()
        self._began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watching:
            reset_peak()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._watching:
            synchronize()
            self.peaks["optimizer_peak_bytes"] = peak_memory_bytes()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize()
        self.seconds.append(time.perf_counter() - self._began)
        control.should_evaluate = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "num_tokens" in logs:
            self._tokens.append(int(logs["num_tokens"]))

    def figures(self) -> dict[str, Any]:
        """The figures of the steps after the warm-up."""
        seconds = self.seconds[WARM_UP_STEPS:]
        median = statistics.median(seconds)
        tokens = (self._tokens[-1] - self._tokens[WARM_UP_STEPS - 1]) / len(seconds)
        p95 = {"step_p95_seconds": percentile_95(seconds)}
        return {
            **self.peaks,
            "peak_bytes": max(*self.peaks.values(), peak_memory_bytes()),
            "steps": len(seconds),
            "step_median_seconds": median,
            "step_max_seconds": max(seconds),
            **(p95 if len(seconds) >= _STEPS_OF_P95 else {}),
            "tokens_per_second": tokens / median,
        }

    def _watched(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._watching:
                return work(*args, **kwargs)
            reset_peak()
            result = work(*args, **kwargs)
            synchronize()
            self.peaks[name] = max(self.peaks.get(name, 0), peak_memory_bytes())
            return result

        return watched


def full_rows(vocabulary: int, count: int, tokens: int) -> list[dict[str, list[int]]]:
    """Rows of random tokens, every one trained, each of exactly so many tokens."""
    ids = torch.randint(_FIRST_ID, vocabulary, (count, tokens), generator=torch.Generator().manual_seed(_SEED))
    return [{"input_ids": row} for row in ids.tolist()]


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def limit_memory(budget: int) -> int:
    """Hold this process's allocator on a GPU to a budget, less what is taken already, by the driver and by any other
    process, or to what is free of a device of about that size; the budget that holds."""
    if device().type != "cuda":
        return budget
    torch.zeros(1, device=device())
    free, total = torch.cuda.mem_get_info()
    held = budget_on(budget, free, total)
    taken = total - free - torch.cuda.memory_reserved()
    if budget <= taken:
        raise NoRoom(f"gpu_memory: {memory(taken)} of {memory(budget)} are taken already; name a larger budget")
    torch.cuda.set_per_process_memory_fraction(min(1.0, min(budget - taken, free) / total))
    return held


def budget_on(budget: int, free: int, total: int) -> int:
    """A budget where it is free, or what is free where the whole device is within a tenth of it: a card of 24 GB
    leaves less than 24 GiB.  Raises `NoRoom` elsewhere."""
    if budget <= free:
        return budget
    if abs(total - budget) <= _NEARLY * budget:
        return free
    raise NoRoom(
        f"gpu_memory: {memory(budget)} are not free on this device ({memory(free)} are); name a smaller budget"
    )


def device_peak_bytes(peak: int) -> int:
    """What a device must have free for a peak: on a GPU what is taken of it outside of the allocator comes on top, the
    driver's part above all, and that of other processes where there are any; what the allocator holds in reserve does
    not, which it gives back where room is short."""
    if device().type != "cuda":
        return peak
    free, total = torch.cuda.mem_get_info()
    return int(peak + max(0, total - free - torch.cuda.memory_reserved() - paged_bytes()))


def _prepared(config: TrainConfig, options: BenchmarkConfig, settings: Settings) -> tuple[TrainConfig, Splits]:
    if config.score_rows and options.kind == "rank":
        return config.changed(eval_steps=_NEVER), load_splits(config)
    steps = WARM_UP_STEPS + options.steps
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    shape = shape_of(resolve(settings, config.model))
    made = full_rows(shape.vocab_size, rows * steps, config.max_length)
    return config.changed(max_steps=steps, eval_steps=_NEVER, loss_on="all", score_rows=0), Splits(
        made, {"test": made[:1]}
    )


def _held_lower(asked: int, held: int) -> str:
    return f"held to the {memory(held)} that are free instead of {memory(asked)}" if held < asked else ""


def _compared(shape: ModelShape, config: TrainConfig, chosen: Chosen, budget: int) -> Comparison:
    on: On = "cuda-fp16" if chosen.fp16 else device_kind()
    recomputes, kernels = chosen.gradient_checkpointing, chosen.kernels
    return compare(shape, config, on, budget, checkpointing=recomputes, kernels=kernels)


def _try(config: TrainConfig, shape: ModelShape, loaded: list[Any], budget: int) -> dict[str, Any]:
    """Two real steps; whether they stayed within the budget, and the most that they took."""
    rows = full_rows(shape.vocab_size, config.per_device_train_batch_size * _FRONTIER_STEPS, config.max_length)
    give_back()
    reset_peak()
    left_by_others = paged_bytes()
    fitted, peaks = True, dict[str, int]()
    with TemporaryDirectory() as folder:
        try:
            phases = _phases(Path(folder), config.changed(loss_on="all"), shape, rows, loaded)
            peaks = phases.peaks
            phases.trainer.train()
        except (RuntimeError, MemoryError) as exc:
            if not ran_out(exc):
                raise
            fitted = False
    peak = max([*peaks.values(), peak_memory_bytes()]) - left_by_others
    within = fitted and peak <= budget
    return {"fits": within, "peak_bytes": peak}


def _phases(folder: Path, config: TrainConfig, shape: ModelShape, rows: list[Any], loaded: list[Any]) -> Phases:
    chosen = choose(config, shape, situation(loaded[0].config.model_type))
    loss_kernels()
    trainer = make_trainer(folder, config, chosen, Splits(rows, {"test": rows[:1]}), (loaded[0], loaded[1]))
    loaded[0] = trainer.model
    phases = Phases(trainer)
    trainer.add_callback(phases)
    return phases
