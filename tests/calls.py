"""Raw HTTP calls of a page's handlers, as somebody writes them who does not use the page."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr
import httpx

from qlora_demo.services import Services
from qlora_demo.ui.page import open_page
from qlora_demo.upkeep.status import AppStatus
from tests.closing import OPENED


class Client:
    """One browser's worth of state: cookies, and a session hash."""

    def __init__(self, url: str, **headers: str) -> None:
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60)
        self.session = secrets.token_hex(6)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def join(self, fn_index: Any, data: list[Any], **more: Any) -> httpx.Response:
        """Ask for a handler; the response to that alone."""
        body = {"fn_index": fn_index, "data": data, "session_hash": self.session} | more
        return self.http.post("/gradio_api/queue/join", json=body)

    def results(self) -> Iterator[dict[str, Any]]:
        """What the server tells this session, until the handlers have ended."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == "close_stream":
                        return
                    yield message

    def call(self, fn_index: int, data: list[Any], **more: Any) -> dict[str, Any]:
        """Call a handler to its end: ``success``, ``output``, and ``told``: the messages that popped up."""
        answer = self.join(fn_index, data, **more)
        assert answer.status_code == 200, answer.text
        told: list[str] = []
        ended: dict[str, Any] = {}
        for message in self.results():
            if message["msg"] == "log":
                told.append(message["log"])
            if message["msg"] == "process_completed":
                ended = message
        return ended | {"told": told}

    def open(self, page: gr.Blocks) -> None:
        """What the page does when it is opened; from then on the server knows what this session's lists hold."""
        for number, handler in page.fns.items():
            if any(event == "load" for _, event in handler.targets):
                self.call(number, values(handler))

    def sign_in(self, password: str) -> httpx.Response:
        """As the form on the page does."""
        return self.http.post("/sign-in", data={"password": password})


def free_port() -> int:
    """One that nobody answers at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def opened(services: Services) -> gr.Blocks:
    """The page of these services, answering until the test ends, or the file's tests where it is theirs."""
    return quietly(lambda: open_page(services, AppStatus(), "127.0.0.1", free_port()))


def quietly(begin: Callable[[], gr.Blocks]) -> gr.Blocks:
    """Build or launch a page.

    Without a running loop Gradio makes some of its own, and it tries ports with sockets; it closes neither.  In a
    thread of its own: the browser that other tests drive keeps a loop running in this one.
    """

    async def inside() -> gr.Blocks:
        return begin()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with ThreadPoolExecutor(1) as thread:
            made: gr.Blocks = thread.submit(asyncio.run, inside()).result()
            OPENED.append(made)
            return made


def values(handler: Any, **given: Any) -> list[Any]:
    """A handler's inputs: what is given by a component's id, with _ for -, and else what the page begins with."""
    names = [str(part.elem_id).replace("-", "_") for part in handler.inputs]
    return [
        None if isinstance(part, gr.State) else given.get(name, getattr(part, "value", None))
        for name, part in zip(names, handler.inputs, strict=True)
    ]


def numbers(page: gr.Blocks, *names: str) -> list[int]:
    """The handlers of these names."""
    return [number for number, handler in page.fns.items() if handler.name in names]
