"""Every listener of the page declares its role, and what only operators may use is out of visitors' reach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from qlora_demo.compose import build_services
from qlora_demo.settings import Settings
from qlora_demo.ui.gate import Gate
from qlora_demo.ui.page import build_page
from qlora_demo.upkeep.status import AppStatus
from qlora_demo.visitors.access import Access
from tests.calls import Client, free_port, quietly

GUARDED = Settings(Path("/nowhere"), password="correct horse")


def undeclared(page: gr.Blocks) -> list[str]:
    """The page's handlers that were wired without a role."""
    handlers = [handler for handler in page.fns.values() if handler.fn is not None and not handler.is_cancel_function]
    return [
        str(handler.name) for handler in handlers if getattr(handler.fn, "needs", "") not in ("visitor", "operator")
    ]


@pytest.mark.parametrize("changes", [{}, {"password": "correct horse"}, {"space": "me/demo", "hub_sign_in": True}])
def test_every_listener_declares_its_role(home: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if changes.get("hub_sign_in"):
        monkeypatch.setenv("SYSTEM", "spaces")
        monkeypatch.setenv("SPACE_ID", "me/demo")
        for name in ("CLIENT_ID", "CLIENT_SECRET", "SCOPES"):
            monkeypatch.setattr(f"gradio.oauth.OAUTH_{name}", "x")
        monkeypatch.setattr("gradio.oauth.OPENID_PROVIDER_URL", "http://127.0.0.1:1")
    services = build_services(replace(Settings(home), **changes))
    page = quietly(lambda: build_page(services, AppStatus()))
    assert len(page.fns) > 80
    assert undeclared(page) == []


def test_a_listener_wired_past_the_gate_is_caught() -> None:
    def begin() -> Any:
        with gr.Blocks() as page:
            gr.Button().click(lambda: None)
            Gate(Access(GUARDED)).on(gr.Button().click, lambda: None, needs="visitor")
        return page

    assert undeclared(quietly(begin)) == ["<lambda>"]


def test_the_page_goes_through_nothing_but_chats_where_it_shows_no_progress(home: Path) -> None:
    page = quietly(lambda: build_page(build_services(Settings(home)), AppStatus()))
    shown = {handler.name: handler for handler in page.fns.values() if handler.show_progress_on is None}
    assert {handler.show_progress for handler in shown.values()} == {"full"}
    assert set(shown) == {"layer", "keep", "report"}
    quiet = [handler for handler in page.fns.values() if handler.show_progress_on is not None]
    chats = [part for handler in quiet for part in handler.outputs if isinstance(part, gr.Chatbot)]
    assert [part for handler in quiet for part in handler.show_progress_on or ()] == chats and chats


VISITORS = """
    _form_of runs again ask asked change choose choose_run columns compare differences edit example forget found greedy
    halt lay_side_by_side layer layers ledger look new_seed open open_to place plan poll redraw refresh retry size
    talk_to vote where who <lambda>
"""
COUNTED = "again ask edit layer retry vote"


def test_visitors_may_use_these_handlers_and_no_others_and_those_that_cost_are_counted(home: Path) -> None:
    services = build_services(replace(Settings(home), password="correct horse"))
    page = quietly(lambda: build_page(services, AppStatus()))
    every: list[Any] = [handler.fn for handler in page.fns.values()]
    handlers = [handler for handler in every if getattr(handler, "needs", "") == "visitor"]
    assert {handler.__name__ for handler in handlers} <= set(VISITORS.split())
    assert {handler.__name__ for handler in handlers if handler.counted} == set(COUNTED.split())


def test_a_page_s_own_timers_outlive_its_session_and_operators_stand_still_for_visitors(home: Path) -> None:
    services = build_services(replace(Settings(home), password="correct horse"))
    page = quietly(lambda: build_page(services, AppStatus()))
    ticking: list[Any] = [one for one in page.fns.values() if any(event == "tick" for _, event in one.targets)]
    assert {one.fn.needs for one in ticking} == {"visitor"}
    blocks: dict[int, Any] = page.blocks
    still = [one for one in ticking if not all(blocks[timer].active for timer, _ in one.targets)]
    assert sorted(str(one.outputs[0].elem_id) for one in still) == ["guide", "live"]


def test_a_handler_s_own_special_parameters_still_arrive() -> None:
    seen: list[Any] = []

    def handle(text: str, request: gr.Request, data: gr.EventData, *more: str) -> str:
        seen.extend([text, type(request).__name__, data._data, more])
        return text

    def begin() -> Any:
        with gr.Blocks() as page:
            box = gr.Textbox()
            Gate(Access(Settings(Path("/nowhere")))).on(box.submit, handle, [box, box, box], box, needs="visitor")
        page.launch(server_name="127.0.0.1", server_port=free_port(), prevent_thread_lock=True, quiet=True)
        return page

    with Client(str(quietly(begin).local_url)) as client:
        client.call(0, ["a", "b", "c"], event_data={"x": 1})
    assert seen == ["a", "Request", {"x": 1}, ("b", "c")]
