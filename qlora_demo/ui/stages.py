"""The way from nothing to a report: which stage a home has reached, told by what is on its disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..jobs import Job, read_result
from ..records import BEFORE as WAITING
from ..results import report
from ..runs import Run


@dataclass(frozen=True)
class Stage:
    """One stage: what its button says, what a newcomer is told before pressing it."""

    name: str
    does: str
    tells: str


DATA = Stage("Data", "Look at the data", "See what the model is to learn: questions, and the answers that are wanted.")
BEFORE = Stage("Before", "Ask the base model", "Send it one of these questions, and see how it does before training.")
TRAIN = Stage("Train", "Start training", "It goes on when this page is closed.")
AFTER = Stage("After", "Ask the tuned model", "Send the same question to base, adapter and merged model, side by side.")
MEASURE = Stage("Measure", "Measure before and after", "Score all three on questions that training never saw.")
REPORT = Stage("Report", "Make the report", "One file with settings, curves, figures and conversations, to take along.")
STAGES = (DATA, BEFORE, TRAIN, AFTER, MEASURE, REPORT)


@dataclass(frozen=True)
class Standing:
    """The stage to do next, or none where a report was made; ``waits`` says what it waits for, ``failed`` what became
    of the last attempt at it."""

    next: Stage | None
    waits: str = ""
    failed: str = ""

    def done(self, stage: Stage) -> bool:
        """Whether a stage lies behind."""
        return self.next is None or STAGES.index(stage) < STAGES.index(self.next)


def standing(runs: Sequence[Run], job: Job | None, seen: Collection[str]) -> Standing:
    """Where a home with these runs, newest first, stands; ``seen`` names the stages that leave nothing on the disk and
    were gone through on this page."""
    if any(report.made(run.path / "report", run.id) for run in runs):
        return Standing(None)
    if going := [run for run in runs if not run.state.ended]:
        active = min(going, key=lambda run: run.state.status in WAITING)
        return Standing(TRAIN, f"The run is {active.state.status}; its curves are on the Train tab.")
    tuned = newest_tuned(runs)
    if tuned is None:
        return _untrained(runs, seen)
    if job is not None and job.going:
        return Standing(MEASURE, f"At work: {job.kind}, {job.progress.text}.")
    measured = read_result(tuned, "evaluation")
    if measured and measured.get("complete"):
        return Standing(REPORT)
    failed = job.error if job is not None and job.run == tuned.id else ""
    if measured and not failed:
        failed = "The last evaluation ended before its last row."
    return Standing(MEASURE, failed=failed) if failed or AFTER.name in seen else Standing(AFTER)


def newest_tuned(runs: Sequence[Run]) -> Run | None:
    """The newest run that ended with an adapter."""
    return next((run for run in runs if run.state.ended and run.has_adapter), None)


def _untrained(runs: Sequence[Run], seen: Collection[str]) -> Standing:
    if runs:
        last = runs[0].state
        return Standing(TRAIN, failed=f"The last run {last.status}: {last.cause}")
    return Standing(next((stage for stage in (DATA, BEFORE) if stage.name not in seen), TRAIN))
