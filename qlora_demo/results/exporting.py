"""What leaves a run: where it is put, the card that goes with it, and how it gets to the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..hub import Hub
from ..jobs import told_result
from ..plan.placement import default_base
from ..records import ExportKind, MergeBase, Progress, Step
from ..runs import Run, RunStore
from .model_card import CardFacts, adapter_card, loading_lines, merged_card


def export_folder(run: Run, what: ExportKind, onto: MergeBase) -> Path:
    """Where an export of a run stands."""
    return run.path / "exports" / (what if what == "adapter" else f"{what}-{onto}")


def base_for(run: Run, what: ExportKind, onto: MergeBase | None) -> MergeBase:
    """The base that is chosen, or the one that suits what is exported."""
    return onto or default_base(run.config.base_form, "merged-4bit" if what == "merged-4bit" else "merged")


def facts(runs: RunStore, run: Run, what: ExportKind, onto: MergeBase, fidelity: dict[str, Any]) -> CardFacts:
    """What the model card tells; ``fidelity`` is what was measured on the very model that is saved."""
    precision = {"adapter": "adapter", "merged": "16bit", "merged-4bit": "nf4"}[what]
    measured = {"merges": {f"{what}:{onto}": fidelity}} if fidelity else None
    return CardFacts(
        run=run.id,
        model=run.config.model,
        dataset=run.config.dataset,
        config=run.config.model_dump(),
        summary=run.state.summary,
        versions=runs.versions(run.id),
        evaluation=told_result(run, "evaluation", runs.adapter_since(run.id)),
        fidelity=measured,
        precision=precision,  # type: ignore[arg-type]
        onto="" if what == "adapter" else onto,
    )


def card(known: CardFacts) -> str:
    """The README.md of an exported folder."""
    return adapter_card(known) if known.precision == "adapter" else merged_card(known)


def lines(runs: RunStore, run: Run, what: ExportKind, onto: MergeBase, where: tuple[Path, str]) -> dict[str, str]:
    """How an exported folder is loaded, ``vllm`` and ``transformers``; ``where``: the folder, and its resolved base."""
    return loading_lines(facts(runs, run, what, onto, {}), str(where[0]), where[1])


def push(hub: Hub, folder: Path, repo: str, token: str) -> Iterator[Step]:
    """Send an exported folder to a hub repository, made private where it is new; ``address`` is the commit's."""
    if not folder.is_dir():
        raise RunError(f"{folder.name} of this run is not exported yet; export it first")
    yield Step(Progress(f"sending {folder.name} to {repo}", 0.1))
    address = hub.push(folder, repo, token=token)
    yield Step(Progress(f"sent to {address}", 1.0), {"address": address, "repo": repo})
