"""What the app is doing now -> HTML.  Imports no gradio."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from ..jobs import Job
from ..records import DeviceInfo, Resident
from ..runs import Run
from ..settings import Limits
from ..units import duration, memory
from .render import bar


@dataclass(frozen=True)
class Live:
    """One look; ``requests``: those of visitors that were counted in the last minute."""

    device: DeviceInfo
    holder: str
    resident: tuple[Resident, ...]
    waiting: int
    answering: bool
    requests: int
    idle_seconds: float
    active: Run | None
    step: int
    queued: tuple[Run, ...]
    kept: int
    job: Job | None
    disk_free_bytes: int
    limits: Limits


def live(now: Live) -> str:
    """Facts about the device, people, training and jobs."""
    sections = [
        _section("Device", _device(now)),
        _section("People", _people(now)),
        _section("Training", _training(now)),
        _section("Job", _job(now.job)),
    ]
    return f'<div class="live">{"".join(sections)}</div>'


def _section(title: str, facts: list[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts)
    return f"<section><h4>{title}</h4><dl>{rows}</dl></section>"


def _device(now: Live) -> list[tuple[str, str]]:
    used = now.device.total_bytes - now.device.free_bytes
    share = used / now.device.total_bytes if now.device.total_bytes else 0.0
    label = f"{memory(used)} of {memory(now.device.total_bytes)} in use"
    models = [f"{escape(one.title)}: {memory(one.model_bytes)}" for one in now.resident]
    return [
        (escape(now.device.name), label + bar(share, label)),
        ("held by", escape(now.holder) or "nobody"),
        ("models in memory", "<br>".join(models) or "none"),
        ("disk", f"{memory(now.disk_free_bytes)} free"),
    ]


def _people(now: Live) -> list[tuple[str, str]]:
    idle = f"{duration(now.idle_seconds)} ago" if now.idle_seconds else "now"
    return [
        ("being answered", "1 person" if now.answering else "nobody"),
        ("waiting", f"{now.waiting} (limit for visitors: {now.limits.queue_length})"),
        ("visitors' requests", f"{now.requests} in the last minute (limit: {now.limits.all_requests})"),
        ("last use", idle),
    ]


def _training(now: Live) -> list[tuple[str, str]]:
    active = now.active
    done = f"{escape(active.id)}: step {now.step} of {active.state.max_steps}" if active else "nothing"
    return [
        ("running", done),
        ("queued", "<br>".join(escape(run.id) for run in now.queued) or "none"),
        ("runs kept", f"{now.kept} of {now.limits.stored_runs}"),
    ]


def _job(job: Job | None) -> list[tuple[str, str]]:
    if job is None:
        return [("job", "none yet")]
    end = "in progress" if job.going else "failed" if job.error else "ended"
    return [(f"{escape(job.kind)} of {escape(job.run)}", f"{end}: {escape(job.error or job.progress.text)}")]
