"""Who one is, at the top of the page: how to become an operator, what a visitor may do, a copy of one's own."""

from __future__ import annotations

from html import escape

import gradio as gr

from ..visitors.access import Access, Visitor
from .gate import Gate, visitor_of

_SAID = {
    "wrong": "That password is wrong; ask whoever runs this app.",
    "wait": "Too many attempts at the password; wait a minute and try again.",
    "other": "You are signed in with Hugging Face, but QLORA_DEMO_OPERATORS does not name you.",
}
_FORM = (
    '<form method="post" action="sign-in"><label>Operators: <input type="password" name="password" required '
    'autocomplete="current-password" placeholder="password"></label><button>Sign in</button></form>'
)
DISABLED = "Controls that are greyed out are for operators, who train, load other models, measure, export and delete."


def hub_button(access: Access) -> gr.LoginButton | None:
    """Where one signs in with Hugging Face, if one can.

    Made before the page is: Gradio then wires no listeners of its own to it.  It is a link, which needs none; the door
    takes what comes back.  It opens a tab: in the hub's frame a browser may hold back the cookie that the answer needs.
    """
    if not access.settings.hub_sign_in:
        return None
    return gr.LoginButton(
        "Sign in with Hugging Face in a new tab, and go on there",
        link="login/huggingface?_target_url=/",
        link_target="_blank",
        size="sm",
        elem_id="hub-sign-in",
        render=False,
    )


def build(gate: Gate, page: gr.Blocks, button: gr.LoginButton | None) -> None:
    """Draw the line and wire it; nothing where everyone is an operator."""
    access = gate.access
    if access.open:
        return
    line = gr.HTML(elem_id="account")
    if button is not None:
        button.render()  # type: ignore[no-untyped-call]
        gate.only(button, "visitor")

    def who(request: gr.Request) -> str:
        return said(access, visitor_of(access, request), str(request.query_params.get("sign-in", "")))

    gate.on(page.load, who, None, line, needs="visitor")


def said(access: Access, visitor: Visitor, outcome: str = "") -> str:
    """The line for one visitor; ``outcome``: how the last attempt to sign in ended."""
    if visitor.role == "operator":
        name = f" as {escape(visitor.name)}" if visitor.name else ""
        leave = '<form method="post" action="sign-out"><button>Sign out</button></form>'
        return f'<div class="account"><span>You are signed in{name}: an operator.</span>{leave}</div>'
    space = access.settings.space
    told = [f"<b>{escape(_SAID[outcome])}</b>"] if outcome in _SAID else []
    told.append("<span>You are a visitor: chat with the finished runs, vote, look at all results.</span>")
    told += [f"<span>{escape(access.trouble)}</span>"] if access.trouble else []
    if space:
        address = f"https://huggingface.co/spaces/{escape(space, quote=True)}?duplicate=true"
        told.append(f'<a href="{address}" target="_blank" rel="noopener">Duplicate this Space</a>')
    return f'<div class="account">{"".join(told)}{_FORM if access.settings.password else ""}</div>'


def explain(gate: Gate) -> None:
    """Why controls of a tab are greyed out, for those to whom they are."""
    if not gate.access.open:
        gate.only(gr.HTML(f'<p class="disabled-why">{DISABLED}</p>'), "visitor")
