"""Everything that is known about a run, gathered into one report."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ..errors import ConfigError, RunError
from ..gpu import device_info
from ..jobs import at_work, read_result, save_result, told_result
from ..records import Answer, Message
from ..runs import Run, RunStore
from ..system.locks import HeldLock
from ..units import memory
from .answers import kept, transcript
from .history import called, read_note
from .report import Report, save
from .votes import VoteStore

_COMPARISONS = 10_000
_PATIENCE = 10.0
"""Seconds: others keep a conversation in much less."""
_LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets", "gradio")


def write_report(runs: RunStore, votes: VoteStore, run: Run, folder: Path) -> dict[str, Path]:
    """Save a run's report into a folder (see `report.save`), while nobody deletes the run."""
    with at_work(run):
        return save(gather(runs, votes, run), folder)


def gather(runs: RunStore, votes: VoteStore, run: Run) -> Report:
    """Configuration, curves, results, kept conversations, note, votes, machine and versions of a run."""
    since = runs.adapter_since(run.id)
    tally = votes.tally(run.id, since)
    state = asdict(run.state)
    choices = run.state.choices
    del state["choices"]
    kept_talks = read_result(run, "conversations") or {"conversations": []}
    return Report(
        title=f"{called(run.config.model)} on {called(run.config.dataset)}",
        made_at=time.time(),
        run=run.id,
        config=run.config.model_dump(),
        state=state,
        choices=choices,
        versions=runs.versions(run.id),
        machine=_machine(),
        metrics=runs.metrics(run.id),
        evaluation=told_result(run, "evaluation", since),
        fidelity=read_result(run, "fidelity"),
        prompts=told_result(run, "prompts", since),
        conversations=kept_talks["conversations"],
        note=read_note(run),
        votes=tally if tally.votes + tally.earlier else None,
        comparisons=votes.comparisons(run.id, limit=_COMPARISONS, since=since),
    )


def keep_conversation(
    run: Run, system: str, prompt: str, answers: list[Answer], earlier: Mapping[str, Sequence[Message]]
) -> int:
    """Put one prompt and its answers into the run's report, with what each column had said before; how many it holds
    now."""
    if not answers:
        raise ConfigError("report", "there is no answer to keep yet; send a prompt first")
    lock = HeldLock.acquire(run.path / ".conversations.lock", {}, patience=_PATIENCE)
    if lock is None:
        raise RunError(f"run {run.id}: its report is being written; try again")
    try:
        found = (read_result(run, "conversations") or {"conversations": []})["conversations"]
        said = {one.column: kept(one) | {"earlier": transcript(earlier.get(one.column, ()))} for one in answers}
        found.append({"prompt": prompt, "system": system, "answers": said})
        save_result(run, "conversations", {"conversations": found})
    finally:
        lock.release()
    return len(found)


def _machine() -> dict[str, str]:
    device = device_info()
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        "device": f"{device.name}, {memory(device.total_bytes)}",
        "platform": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }
