"""A token goes to the hub and nowhere else: not to the disk, not into the log, not back to a browser."""

from __future__ import annotations

import asyncio
import base64
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route

from qlora_demo.access import Access
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.hub import HuggingFaceHub
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Settings
from qlora_demo.ui.door import COOKIE, Door
from tests.calls import Client, numbers, opened, values
from tests.hub_server import HubServer

CANARY, PASSWORD = "canary-8d1f5c7e2b", "correct horse"


@pytest.fixture
def home_and_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which Gradio's files lie too, to be looked through with it."""
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    return home


@pytest.mark.parametrize(("typed", "works"), [(CANARY, True), (CANARY + "-not", False)])
def test_a_typed_token_leaves_no_trace(
    hub_server: HubServer,
    home_and_cache: Path,
    typed: str,
    works: bool,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    home = home_and_cache
    hub_server.token = CANARY
    services = build_services(Settings(home, password=PASSWORD))
    services = replace(services, hub=HuggingFaceHub(hub_server.url))
    run = services.runs.create(TrainConfig())
    write_state(run.path, RunState(status="finished"))
    folder = run.path / "exports" / "adapter"
    folder.mkdir(parents=True)
    (run.path / "adapter").mkdir()
    (folder / "README.md").write_text("# An adapter\n", "utf-8")
    page = opened(services)
    with Client(str(page.local_url)) as operator, Client(str(page.local_url)) as visitor:
        operator.sign_in(PASSWORD)
        operator.open(page)
        [push] = numbers(page, "push")
        given = {"judge_run": run.id, "export_what": "adapter", "repo": "ada/tickets", "token": typed}
        ended = operator.call(push, values(page.fns[push], **given))
        while services.jobs.going:
            time.sleep(0.05)
        assert bool(services.jobs.last and services.jobs.last.error) is not works
        assert bool(hub_server.requests)
        responses = [str(ended), *everything_served(page, operator), *everything_served(page, visitor)]
    assert ended["output"]["data"][1] == ""
    for text in (*responses, caplog.text, *capfd.readouterr(), str(services), repr(services.jobs.last)):
        assert CANARY not in text
    for path in home.rglob("*"):
        assert CANARY not in path.name and not (path.is_file() and CANARY.encode() in path.read_bytes()), path


def everything_served(page: Any, client: Client) -> list[str]:
    """What the page shows of a job, and what anybody may fetch."""
    shown = [
        str(client.call(number, values(page.fns[number]))) for number in numbers(page, "poll", "redraw", "look")[:3]
    ]
    return [*shown, client.http.get("/").text, client.http.get("/config").text, client.http.get("/healthz").text]


@pytest.mark.parametrize(("name", "operator"), [("ada", True), ("eve", False)])
def test_the_hub_s_token_stays_out_of_the_browser_and_signs_operators_in(name: str, operator: bool) -> None:
    access = Access(Settings(Path("/nowhere"), space="me/demo", hub_sign_in=True, operators=("ada",)))

    async def callback(request: Request) -> RedirectResponse:
        """As Gradio's does when the hub has vouched for somebody."""
        user = {"sub": f"id of {name}", "preferred_username": name}
        request.session["oauth_info"] = {"access_token": CANARY, "userinfo": user}
        return RedirectResponse("/")

    inner = Starlette(routes=[Route("/login/callback", callback)])
    outer: Any = SessionMiddleware(Door(inner, access, str), "secret")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="https://demo.hf.space") as client:
            return await client.get("/login/callback")

    answer = asyncio.run(ask())
    cookies = dict(cookie.partition("=")[::2] for cookie in answer.headers.get_list("set-cookie"))
    assert CANARY not in str(answer.headers)
    assert all(CANARY.encode() not in base64.b64decode(value.split(".")[0] + "===") for value in cookies.values())
    assert answer.headers["location"] == ("/" if operator else "../?sign-in=other")
    found = access.identify("a", cookies.get(COOKIE, "").split(";")[0])
    assert (found.role, found.token) == (("operator", CANARY) if operator else ("visitor", ""))


def test_the_browser_is_asked_to_keep_no_token_and_no_call(home: Path) -> None:
    page = opened(build_services(Settings(home)))
    [token] = [part for part in page.blocks.values() if getattr(part, "elem_id", "") == "token"]
    assert token.type == "password" and token.html_attributes.autocomplete == "off"  # type: ignore[attr-defined]
    assert page.run_history is False
