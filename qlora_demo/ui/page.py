"""The page: a line that says where one is, then the tabs in the order a story is told."""

from __future__ import annotations

from typing import Any

import gradio as gr

from .. import __version__
from ..catalog import SMOLLM2
from ..gpu import device_info
from ..services import Services
from ..status import AppStatus
from . import chat_tab, render, train_tab

TITLE = "QLoRA demo"
CSS = """
.status {display:flex; flex-wrap:wrap; gap:.25rem 1.25rem; font-size:.85rem; opacity:.85}
.bar {height:8px; border-radius:4px; background:var(--border-color-primary); overflow:hidden; margin:.3rem 0}
.bar div {height:100%; background:var(--color-accent); transition:width .3s}
.status .bar {width:160px; display:inline-block; margin:0 0 0 .5rem}
.bad {color:var(--error-text-color, #b91c1c)}
.run p, .run ul {margin:.2rem 0} .run ul {padding-left:1.1rem; font-size:.85rem} .run summary {cursor:pointer}
.run dl, .foot dl {display:flex; flex-wrap:wrap; gap:.3rem 1.2rem; margin:.4rem 0}
.foot dl {display:grid; grid-template-columns:auto 1fr auto 1fr; gap:.1rem .6rem; font-size:.85rem}
.run dt, .foot dt {opacity:.75; font-size:.8rem} .run dd, .foot dd {margin:0; font-weight:600}
.foot {min-height:6.4rem} .head {min-height:3.6rem} .foot small, .head small {opacity:.75}
.head small {display:block} .empty {padding:1rem 0}
/* Gradio's own button would empty the picture and not the conversation. */
[id^=chat-] button[aria-label=Clear] {display:none}
.about {display:grid; grid-template-columns:max-content 1fr; gap:.1rem 1rem; font-size:.85rem; margin:0 0 .6rem}
.about dt {opacity:.75} .about dd {margin:0; overflow-wrap:anywhere}
#stop {align-self:end; max-height:3rem}
"""


def build_page(services: Services, status: AppStatus) -> gr.Blocks:
    """The whole page over the services it is handed; nothing is loaded until it is asked for."""
    page: gr.Blocks
    with gr.Blocks(title=TITLE, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\nTrain a LoRA adapter on a 4-bit model, then judge it beside its base and its merge.")
        line = gr.HTML(elem_id="status")
        with gr.Tabs():
            with gr.Tab("Train", id="train"):
                train_tab.build(services, page)
            with gr.Tab("Chat", id="chat") as chat:
                run = chat_tab.build(services)

        def where() -> str:
            return render.status_line(
                device_info(), services.lease.holder(), status.hub, status.fetching, status.fetch_error
            )

        def refresh(chosen: str | None) -> Any:
            return chat_tab.runs_with_adapter(services.runs, chosen)

        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        gr.Timer(5).tick(where, None, line, concurrency_limit=None, **hidden)
        page.load(where, None, line, **hidden)
        page.load(refresh, run, run, **hidden)
        chat.select(refresh, run, run, **hidden)
        gr.Markdown(f"<small>qlora-demo {__version__}</small>")
    return page


def launch(services: Services, host: str | None, port: int | None) -> None:
    """Answer until interrupted; the bundled model is fetched in the background where it is missing."""
    status = AppStatus()
    page = build_page(services, status)
    status.begin(services.settings, SMOLLM2, services.fetch)
    page.launch(
        server_name=host,
        server_port=port,
        css=CSS,
        theme=gr.themes.Default(primary_hue="amber"),
        footer_links=[],
        max_file_size="200mb",
    )
