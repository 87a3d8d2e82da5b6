"""The page: a line that says where one is, then the tabs in the order a story is told."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from .. import __version__
from ..background import begin
from ..gpu import device_info
from ..logs import event
from ..services import Services
from ..settings import trust_proxies
from ..status import AppStatus
from . import account, benchmark_tab, chat_tab, evaluate_tab, explain_tab, live_tab, render, train_tab
from .door import Door, role_needed
from .gate import Gate
from .healthz import healthz

TITLE = "QLoRA demo"
_SESSIONS = 1000
"""Pages whose conversations are kept; beyond, the one that was used longest ago is forgotten."""
_THREADS = 40
"""For handlers, beside those that wait for an answer."""
CSS = """
.status {display:flex; flex-wrap:wrap; gap:.25rem 1.25rem; font-size:.85rem; opacity:.85}
.bar {height:8px; border-radius:4px; background:var(--border-color-primary); overflow:hidden; margin:.3rem 0}
.bar div {height:100%; background:var(--color-accent); transition:width .3s}
.status .bar {width:160px; display:inline-block; margin:0 0 0 .5rem}
.bad {color:var(--error-text-color, #b91c1c)}
.run p, .run ul {margin:.2rem 0} .run ul {padding-left:1.1rem; font-size:.85rem} .run summary {cursor:pointer}
.run dl, .foot dl {display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; margin:.4rem 0}
.foot dl {display:grid; grid-template-columns:max-content 1fr; gap:.05rem .8rem; font-size:.85rem}
.run dt, .foot dt {opacity:.75; font-size:.8rem} .run dd, .foot dd {margin:0; font-weight:600}
.foot {min-height:14rem} .head {min-height:5.2rem} .foot small, .head small {opacity:.75}
.head small {display:block} .empty {padding:1rem 0}
/* Gradio's own button would empty the picture and not the conversation. */
[id^=chat-] button[aria-label=Clear] {display:none}
.about {display:grid; grid-template-columns:max-content 1fr; gap:.1rem 1rem; font-size:.85rem; margin:0 0 .6rem}
.about dt {opacity:.75} .about dd {margin:0; overflow-wrap:anywhere}
.placement {margin:.2rem 0} .placement p {margin:.2rem 0; font-size:.85rem}
.stack {display:flex; height:14px; border-radius:4px; overflow:hidden; background:var(--border-color-primary)}
.stack i {height:100%} .key {display:flex; flex-wrap:wrap; gap:.1rem 1rem; font-size:.8rem; opacity:.85}
.key i {display:inline-block; width:.7rem; height:.7rem; border-radius:2px; margin-right:.3rem}
.latency {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem; font-size:.85rem}
.latency > div > div {display:grid; grid-template-columns:minmax(5rem,max-content) 1fr 5rem; gap:.6rem}
.sides {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem}
.sides pre, #exported pre, #command pre, .rendered {white-space:pre-wrap; overflow-wrap:anywhere; margin:0}
.sides pre, #exported pre, #command pre, .rendered {font-size:.85rem}
mark.gone {background:#fecaca; color:#7f1d1d} mark.new {background:#bbf7d0; color:#14532d}
.plot {max-width:100%; height:auto; display:block}
.good {color:#15803d} .masked {opacity:.5} .plan p {margin:.3rem 0; font-size:.9rem}
.plan .latency > div > div {grid-template-columns:9rem 1fr 5rem} .plan summary {cursor:pointer; font-size:.85rem}
.wide {overflow-x:auto} .results {border-collapse:collapse; font-size:.85rem}
.results th, .results td {border:1px solid var(--border-color-primary); padding:.25rem .5rem; text-align:left}
.results td {vertical-align:top; overflow-wrap:anywhere; min-width:4rem} .results small {display:block; opacity:.7}
.results.answers td {min-width:11rem} .results.answers td:first-child {min-width:0}
@media (max-width:640px) {
  #answers {flex-wrap:nowrap; overflow-x:auto; scroll-snap-type:x mandatory}
  #answers > div {min-width:86% !important; scroll-snap-align:start} .foot {min-height:0}
}
#stop, #resume {align-self:end}
.tick {min-width:9rem !important}
.live {display:grid; grid-template-columns:repeat(auto-fit,minmax(260px,1fr)); gap:1rem; font-size:.9rem}
.live dl {display:grid; grid-template-columns:max-content 1fr; gap:.2rem 1rem; margin:.3rem 0}
.live dt {opacity:.75} .live dd {margin:0; overflow-wrap:anywhere} .live h4 {margin:0}
.account {display:flex; flex-wrap:wrap; gap:.4rem 1.2rem; align-items:center; font-size:.9rem}
.account form {display:flex; gap:.5rem; margin:0} .disabled-why {font-size:.9rem; opacity:.85; margin:.2rem 0}
.account input, .account button {border:1px solid var(--border-color-primary); border-radius:4px}
.account input, .account button {font:inherit; padding:.2rem .6rem}
"""


def build_page(services: Services, status: AppStatus) -> gr.Blocks:
    """The whole page over the services it is handed; nothing is loaded until it is asked for."""
    page: gr.Blocks
    gate = Gate(services.access)
    hub_button = account.hub_button(services.access)
    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\nTrain a LoRA adapter on a 4-bit model, then judge it beside its base and its merge.")
        account.build(gate, page, hub_button)
        line = gr.HTML(elem_id="status")
        with gr.Accordion("What was found at the start", open=False, elem_id="found-at-start"):
            found_at_start = gr.HTML()
        with gr.Tabs() as tabs:
            with gr.Tab("Train", id="train"):
                account.explain(gate)
                train_tab.build(services, page, gate)
            with gr.Tab("Chat", id="chat") as chat:
                untrained = [_train_first(tabs, gate)]
                run = chat_tab.build(services, gate)
            with gr.Tab("Evaluate", id="evaluate") as judge:
                account.explain(gate)
                untrained.append(_train_first(tabs, gate))
                judged = evaluate_tab.build(services, gate)
            with gr.Tab("Benchmark", id="benchmark"):
                account.explain(gate)
                benchmark_tab.build(services, page, gate)
            with gr.Tab("Explain", id="explain") as explained:
                untrained.append(_train_first(tabs, gate))
                explain = explain_tab.build(services, gate)
            with gr.Tab("Live", id="live") as live:
                live_tab.build(services, gate)
            gate.only(live, "operator")

        def where() -> str:
            return render.status_line(device_info(), services.lease.holder(), status.notes())

        def refresh(chosen: str | None) -> list[Any]:
            found = chat_tab.runs_with_adapter(services.runs, chosen)
            return [found, gr.Button(visible=not found.choices)]

        gate.on(gr.Timer(5).tick, where, None, line, needs="visitor", concurrency_limit=None)
        gate.on(page.load, where, None, line, needs="visitor")
        gate.on(page.load, lambda: render.found_at_start(status.found), None, found_at_start, needs="visitor")
        gate.on(explained.select, explain.open, explain.inputs, explain.outputs, needs="visitor")
        for tab, dropdown, first in zip((chat, judge, explained), (run, judged, explain.run), untrained, strict=True):
            if tab is not explained:  # which reads the model when it is opened, and not before
                gate.on(page.load, refresh, dropdown, [dropdown, first], needs="visitor")
            gate.on(tab.select, refresh, dropdown, [dropdown, first], needs="visitor")
        gr.Markdown(f"<small>qlora-demo {__version__}</small>")
        gate.close(page)
    return page


def _train_first(tabs: gr.Tabs, gate: Gate) -> gr.Button:
    """What leads on where there is no run yet."""
    button = gr.Button("No run is finished yet: train one", variant="primary", visible=False)
    gate.on(button.click, lambda: gr.Tabs(selected="train"), None, tabs, needs="visitor")
    return button


def launch(services: Services, host: str | None, port: int | None) -> None:
    """Answer until interrupted; the bundled model is fetched in the background where it is missing."""
    status = AppStatus()
    page = open_page(services, status, host, port)
    begin(services, status)
    if warning := services.access.warning(str(page.server_name or "")):
        event("access.warning", logging.WARNING, text=warning)
    page.block_thread()


def open_page(services: Services, status: AppStatus, host: str | None, port: int | None) -> gr.Blocks:
    """Begin to answer, behind the door; returns at once."""
    limits = services.settings.limits
    page = build_page(services, status)
    trust_proxies(services.settings)
    page.launch(
        server_name=host,
        server_port=port,
        css=CSS,
        theme=gr.themes.Default(primary_hue="amber"),
        footer_links=[],
        max_file_size=f"{limits.upload_mb}mb",
        run_history=False,
        ssr_mode=False,
        state_session_capacity=_SESSIONS,
        max_threads=_THREADS + limits.queue_length,
        app_kwargs={
            "routes": [healthz(services)],
            "middleware": [Middleware(Door, access=services.access, needs=role_needed(page))],
        },
        prevent_thread_lock=True,
    )
    return page
