"""A visitor of a running app, over the protocol that `gradio_client` speaks: it offers no private endpoint itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from qlora_demo.ui.talk import from_html
from tests.calls import Client

TOKENS = 6
"""The longest answer."""


class Page:
    """What the app tells of itself at ``/config``: its handlers and what they take and give."""

    def __init__(self, url: str) -> None:
        self.url = url
        config = httpx.get(f"{url}/config", timeout=60).json()
        self.props = {part["id"]: part["props"] for part in config["components"]}
        self.handlers = config["dependencies"]
        self._ids = {props["elem_id"]: key for key, props in self.props.items() if props.get("elem_id")}

    def listening(self, elem_id: str, event: str) -> dict[str, Any]:
        """The first handler of a component's event."""
        wanted = [self._ids[elem_id], event]
        return next(one for one in self.handlers if wanted in one["targets"])

    def loading(self) -> list[dict[str, Any]]:
        """The handlers that a browser calls when it opens the page."""
        return [one for one in self.handlers if any(event == "load" for _, event in one["targets"])]

    def values(self, handler: dict[str, Any], changed: dict[str, Any] | None = None) -> list[Any]:
        """A handler's inputs as the page has them, some of them changed, by elem_id."""
        named = {self._ids[name]: value for name, value in (changed or {}).items()}
        return [named.get(key, self.props[key].get("value")) for key in handler["inputs"]]

    def gives(self, handler: dict[str, Any], elem_id: str) -> bool:
        """Whether a component is among a handler's outputs."""
        return self._ids[elem_id] in handler["outputs"]

    def place(self, handler: dict[str, Any], elem_id: str) -> int:
        """Where a component stands among a handler's outputs."""
        return int(handler["outputs"].index(self._ids[elem_id]))


@dataclass
class Asked:
    """One prompt: when it was sent, taken in, begun by the page and first answered, what came, what was refused."""

    prompt: str
    blind: bool
    sent: float
    taken: float = 0.0
    begun: float = 0.0
    served: float = 0.0
    conversations: list[list[tuple[str, str]]] = field(default_factory=list)
    """Role and text of each message, for each column in the place it stands in."""
    told: list[str] = field(default_factory=list)
    failed: str = ""


class Visitor:
    """One person's browser at an address of its own: a new one is a new session."""

    def __init__(self, page: Page, run: str, columns: list[str], number: int = 0) -> None:
        self.page, self.run, self.columns = page, run, columns
        self.headers = {"x-forwarded-for": f"203.0.113.{number + 1}"}
        self.client = Client(page.url, **self.headers)
        self.open()

    def open(self) -> None:
        """Load or reload the page."""
        self.client.http.close()
        self.client = Client(self.page.url, **self.headers)
        for handler in self.page.loading():
            if self.page.gives(handler, "chat-run"):
                self.client.call(handler["id"], self.page.values(handler))

    def ask(self, prompt: str, *, blind: bool = False, leave_after: int = 0) -> Asked:
        """Send a prompt to all columns and wait for the end; or leave after so many updates."""
        handler = self.page.listening("send", "click")
        changed = {"prompt": prompt, "chat-run": self.run, "columns": self.columns, "blind": blind, "system": ""}
        data = self.page.values(handler, changed | {"GenerationSettings-max_new_tokens": TOKENS})
        asked = Asked(prompt, blind, time.monotonic())
        answer = self.client.join(handler["id"], data)
        if answer.status_code != 200:
            asked.failed = answer.text
            return asked
        asked.taken = time.monotonic()
        for number, message in enumerate(self.client.results()):
            if message["msg"] == "log":
                asked.told.append(message["log"])
            elif message["msg"] == "process_completed":
                self._read(message, handler, asked)
            elif message["msg"] == "process_generating":
                asked.begun = asked.begun or time.monotonic()
                if "tokens/s" in str(message):
                    asked.served = asked.served or time.monotonic()
            if leave_after and number >= leave_after:
                break
        return asked

    def vote(self, choice: str) -> list[str]:
        """Vote on the last blind answers; what was refused."""
        handler = self.page.listening(f"vote-{choice}", "click")
        ended = self.client.call(handler["id"], self.page.values(handler))
        told: list[str] = ended["told"]
        return told + ([] if ended["success"] else [f"failed: {ended['output']}"])

    def _read(self, message: dict[str, Any], handler: dict[str, Any], asked: Asked) -> None:
        if not message["success"]:
            asked.failed = str(message["output"])
            return
        data = message["output"]["data"]
        shown = [data[self.page.place(handler, f"chat-{place}")] or [] for place in range(len(self.columns))]
        if all(isinstance(one, list) for one in shown):  # a refused prompt leaves the page as it is
            asked.conversations = [[(turn["role"], _text(turn["content"])) for turn in one] for one in shown]


def _text(content: Any) -> str:
    parts = [content] if isinstance(content, str) else content
    return from_html("".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in parts))
