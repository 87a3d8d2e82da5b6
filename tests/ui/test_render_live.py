"""The Live tab's facts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.jobs import Job
from qlora_demo.records import DeviceInfo, Progress, RunState
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Limits
from qlora_demo.ui.render_live import Live, live
from qlora_demo.units import GIB
from tests.calls import Client, opened

NOTHING = Live(
    device=DeviceInfo("cuda", "A <card>", 6 * GIB, 24 * GIB),
    holder="",
    resident=(),
    waiting=0,
    answering=False,
    requests=0,
    idle_seconds=61.0,
    active=None,
    step=0,
    queued=(),
    kept=0,
    job=None,
    disk_free_bytes=GIB,
    limits=Limits(),
)


def test_an_app_at_rest_says_so() -> None:
    shown = live(NOTHING)
    for part in (
        "A &lt;card&gt;",
        "18.0 GiB of 24.0 GiB in use",
        "nobody",
        "1.0 GiB free",
        "1 min 01 s ago",
        "none yet",
    ):
        assert part in shown


def test_what_is_going_on_is_told() -> None:
    run = Run("20260101-000000-qlora-0001", Path("/x"), TrainConfig(), RunState("running", max_steps=30))
    job = Job("push", run.id, Progress("sending"), going=False, error="<b>no</b>")
    busy = NOTHING.__class__(
        **vars(NOTHING)
        | {"active": run, "step": 7, "queued": (run,), "waiting": 3, "answering": True, "requests": 12, "job": job}
        | {"holder": "training of <x>", "idle_seconds": 0.0, "kept": 2}
    )
    shown = live(busy)
    for part in (
        "step 7 of 30",
        "3 (limit for visitors: 20)",
        "12 in the last minute (limit: 300)",
        "1 person",
        "2 of 1000",
        "training of &lt;x&gt;",
        "failed: &lt;b&gt;no&lt;/b&gt;",
    ):
        assert part in shown


def test_the_tab_is_drawn_when_it_is_opened(services: Services) -> None:
    """Its timer stands still before that, and an empty tab would seem broken until it first ticks."""
    page = opened(services)
    [look] = [number for number, one in page.fns.items() if _draws_live_on_select(one)]
    with Client(str(page.local_url)) as client:
        assert "waiting" in client.call(look, [])["output"]["data"][0]
    page.close()


def test_whose_session_has_ended_is_told_so_in_the_tab_and_sees_no_more_than_any_visitor(services: Services) -> None:
    """A refused timer would pop an error up every few seconds, on a page that somebody left open."""
    page = opened(build_services(replace(services.settings, password="correct horse")))
    looks = [number for number, one in page.fns.items() if _draws(one, "live")]
    with Client(str(page.local_url)) as operator, Client(str(page.local_url)) as visitor:
        operator.sign_in("correct horse")
        seen = [operator.call(look, [])["output"]["data"][0] for look in looks]
        assert len(seen) == 2 and all("waiting" in one for one in seen)
        operator.http.post("/sign-out")
        said = [one.call(look, [])["output"]["data"] for one in (operator, visitor) for look in looks]
    told = "This is for operators, and you are not signed in, or no longer; reload the page."
    assert said == [[f'<p class="bad">{told}</p>']] * 4
    page.close()


def _draws_live_on_select(handler: Any) -> bool:
    return _draws(handler, "live") and any(event == "select" for _, event in handler.targets)


def _draws(handler: Any, part: str) -> bool:
    return part in [one.elem_id for one in handler.outputs]
