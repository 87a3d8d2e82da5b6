"""The page: a line that says where one is, then the tabs in the order a story is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from .. import __version__
from ..errors import ConfigError
from ..gpu import device_info
from ..services import Services
from ..settings import trust_proxies
from ..system.heap import ARENA_MAX, set_option
from ..system.logs import event
from ..upkeep.background import begin
from ..upkeep.health import Kept
from ..upkeep.status import AppStatus
from . import account, benchmark_tab, chat_tab, evaluate_tab, explain_tab, guide, live_tab, render, train_tab
from .door import Door, role_needed, unread_of
from .gate import Gate, visitor_of
from .healthz import healthz
from .look import CSS, LABELS, theme
from .sent import Page

TITLE = "QLoRA demo"
_TELLS = "Train a LoRA adapter on a 4-bit model, then judge it beside its base and its merge."
_WAITING_CALLS = 1000
"""Of all pages' handlers; beyond, Gradio says that the queue is full."""
_LOOKING = 0.01
"""Seconds between two looks for a call; at Gradio's own 0.001 an app that nobody uses takes 6% more of a core."""
_HEAPS = 2
"""For all threads: what one frees is of use to the others."""
_THREADS = 40
"""For handlers, beside those that wait for an answer."""
_DEVICE_SECONDS = 4.0
"""All open pages share one reading of the device: on a GPU it is a process, and something may be timed meanwhile."""
_TICKING = """async () => {
  const active = %s;
  await new Promise((done) => setTimeout(done));
  const open = Object.keys(active).find((tab) => document.getElementById(tab)?.offsetParent);
  return active[open ?? "%s"].map((one) => ({__type__: "update", active: one}));
}"""
"""By what is open: the first tab says that it is selected when the page is drawn, and by then another may be."""


def build_page(services: Services, status: AppStatus) -> gr.Blocks:
    """The whole page over the services it is handed; nothing is loaded until it is asked for."""
    page: gr.Blocks
    gate = Gate(services.access)
    hub_button = account.hub_button(services.access)
    with Page(title=TITLE, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{_TELLS}", elem_id="masthead")
        account.build(gate, page, hub_button)
        line = gr.HTML(elem_id="status")
        led = guide.draw()
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train", elem_id="tab-train") as train:
                account.explain(gate)
                train_tab.build(services, page, train, gate)
            with gr.Tab("Chat", id="chat", elem_id="tab-chat") as chat:
                talked = chat_tab.build(services, gate)
            with gr.Tab("Evaluate", id="evaluate", elem_id="tab-evaluate") as judge:
                account.explain(gate)
                none_to_judge = _train_first(tabs, gate)
                judged = evaluate_tab.build(services, gate)
            with gr.Tab("Benchmark", id="benchmark", elem_id="tab-benchmark"):
                account.explain(gate)
                benchmark_tab.build(services, page, gate)
            with gr.Tab("Explain", id="explain", elem_id="tab-explain") as explained:
                none_to_explain = _train_first(tabs, gate)
                explain = explain_tab.build(services, gate)
            with gr.Tab("Live", id="live", elem_id="tab-live") as live:
                live_tab.build(services, live, gate)
            gate.only(live, "operator")
        with gr.Accordion("What was found at the start", open=False, elem_id="found-at-start"):
            found_at_start = gr.HTML()
        gate.on(page.load, *guide.wire(services, led, tabs, talked, gate), needs="visitor")
        _tick_in_the_open_tab_only(tabs, gate)

        device = Kept(device_info, _DEVICE_SECONDS)

        def where() -> str:
            return render.status_line(device(), services.holder(), status.notes())

        def found(request: gr.Request) -> str:
            """Where things lie is for operators."""
            operator = visitor_of(services.access, request).role == "operator"
            return render.facts({k: v for k, v in status.found.items() if operator or k != "home"})

        def talk_to(chosen: str | None) -> dict[str, Any]:
            return chat_tab.askable(services, chosen)

        gate.on(page.load, lambda: None, needs="visitor", js=LABELS)
        gate.on(gr.Timer(5).tick, where, None, line, needs="visitor", concurrency_limit=None)
        gate.on(page.load, where, None, line, needs="visitor")
        gate.on(page.load, found, None, found_at_start, needs="visitor")
        gate.on(explained.select, explain.open, explain.inputs, explain.outputs, needs="visitor")
        for trigger in (page.load, chat.select):
            gate.on(trigger, talk_to, talked.run, talked.run, needs="visitor")
        _list_runs(services, gate, (page.load, judge.select), (judged, none_to_judge))
        # Explain reads the model when it is opened, and not before.
        _list_runs(services, gate, (explained.select,), (explain.run, none_to_explain))
        gr.Markdown(f"<small>qlora-demo {__version__}</small>")
        gate.close(page)
    return page


def _tick_in_the_open_tab_only(tabs: gr.Tabs, gate: Gate) -> None:
    """Each tick is a request, and drawn anew; a tab that was never opened has no timers in the page yet."""
    opened: list[Any] = list(tabs.children)
    timers = {tab.elem_id: _timers(tab) for tab in opened}
    every = [timer for own in timers.values() for timer in own]
    active = {tab: [timer in own for timer in every] for tab, own in timers.items()}
    for tab in opened:
        gate.script(tab.select, _TICKING % (json.dumps(active), tab.elem_id), [], every)


def _timers(block: Any) -> list[gr.Timer]:
    if isinstance(block, gr.Timer):
        return [block]
    return [timer for child in getattr(block, "children", []) for timer in _timers(child)]


def _list_runs(services: Services, gate: Gate, events: Sequence[Any], parts: tuple[gr.Dropdown, gr.Button]) -> None:
    """Have a dropdown list the finished runs, and a button lead on where there is none."""

    def refresh(chosen: str | None) -> list[Any]:
        found = chat_tab.runs_with_adapter(services.runs, chosen)
        return [found, gr.Button(visible=not found["choices"])]

    for trigger in events:
        gate.on(trigger, refresh, parts[0], list(parts), needs="visitor")


def _train_first(tabs: gr.Tabs, gate: Gate) -> gr.Button:
    """What leads on where there is no run yet."""
    button = gr.Button("No run is finished yet: train one", variant="primary", visible=False)
    gate.on(button.click, lambda: gr.Tabs(selected="train"), None, tabs, needs="visitor")
    return button


def launch(services: Services, host: str | None, port: int | None) -> None:
    """Answer until interrupted; the bundled model is fetched in the background where it is missing.

    Raises `ConfigError` where Gradio finds no port.
    """
    set_option(ARENA_MAX, _HEAPS)
    status = AppStatus()
    try:
        page = open_page(services, status, host, port)
    except OSError as exc:
        if "empty port" not in str(exc):
            raise
        raise ConfigError("port", f"cannot answer on any ({exc}); stop another app or name a free one") from exc
    begin(services, status)
    if trouble := services.access.trouble:
        event("access.warning", logging.WARNING, text=trouble)
    page.block_thread()


def open_page(services: Services, status: AppStatus, host: str | None, port: int | None) -> gr.Blocks:
    """Begin to answer, behind the door; returns at once."""
    limits, access = services.settings.limits, services.access
    access.host = host or access.host
    page = build_page(services, status)
    trust_proxies(services.settings)
    page.queue(max_size=_WAITING_CALLS)
    page._queue.sleep_when_free = _LOOKING
    page.launch(
        server_name=access.host,
        server_port=port,
        css=CSS,
        theme=theme(),
        footer_links=[],
        max_file_size=f"{limits.upload_mb}mb",
        run_history=False,
        ssr_mode=False,
        share=services.settings.shared,
        enable_monitoring=False,
        state_session_capacity=limits.open_pages,
        max_threads=_THREADS + limits.queue_length,
        app_kwargs={
            "routes": [healthz(services)],
            "middleware": [Middleware(Door, access=access, needs=role_needed(page), unread=unread_of(page))],
        },
        prevent_thread_lock=True,
    )
    return page
