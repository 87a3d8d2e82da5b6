"""The door in front of Gradio: who asks, what they may ask for, how much they may send.

Gradio reads and stores a request's values before it calls a handler: a file object in any of them is downloaded to the
disk.  So what a visitor may not do is refused here, by an ASGI middleware, before anything is read.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import replace
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import Forbidden, RequestError, TooMany
from ..visitors.access import SESSION_SECONDS, Access, HubUser, Visitor, is_loopback

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = dict[bytes, str]

COOKIE = "qlora_demo_session"
_API = "/gradio_api/"
_CALLS = frozenset({"queue", "run", "api", "call"})
"""Gradio's routes that call a handler."""
_OPERATORS = frozenset({"upload", "upload_progress"})
_OFFERED = _CALLS | _OPERATORS | {"cancel", "reset", "heartbeat", "startup-events", "info", "file"}
_OFFERED |= {"app_id", "user", "token", "login_check", "theme.css"}
"""What the page uses of Gradio's routes; the others are closed to everyone."""
_CALL_BYTES, _VISITORS_CALL_BYTES = 1 << 20, 1 << 16
_PROMPT_BYTES = 2 * 4
"""Of a prompt and a system prompt, at most for each character that a visitor's may have."""
_FORM_BYTES = 1 << 12
_UNREAD, _UNREAD_IN_ALL = 64, 4096
"""Calls and messages that wait for one page, and messages for all, until one that has not read its own may call no
more."""
_FRAMED = "https://huggingface.co https://*.hf.space"
_PROXIED = frozenset({b"forwarded", b"via", b"x-real-ip", b"x-forwarded-for", b"x-forwarded-host"})
"""What a proxy adds, by which others ask from this machine."""


class Door:
    """The middleware.  ``needs`` tells the role that a handler needs, by its number or its name; ``unread`` how many
    calls and messages wait for a page to read them, and messages for all pages."""

    def __init__(
        self, app: App, access: Access, needs: Callable[[Any], Any], unread: Callable[[str], tuple[int, int]]
    ) -> None:
        self.app = app
        self.access = access
        self.needs = needs
        self.unread = unread
        space = f" {_FRAMED}" if access.settings.is_space else ""
        self._frames = (b"content-security-policy", f"frame-ancestors 'self'{space}".encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        send = self._framed(send)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        visitor = self._who(scope, headers)
        scope.setdefault("state", {})["visitor"] = visitor
        try:
            self._check_name(headers)
            if scope["method"] == "POST" and path in ("/sign-in", "/sign-out"):
                if not _is_own(headers):
                    raise _Refused(403, f"{path[1:]}: another site's page asked for it; do it on the app's own page")
                await self._sign(path, scope, receive, send)
                return
            checked = await self._checked(path, headers, visitor, receive)
            await self.app(scope, checked, self._signed_by_hub(scope, send) if path == "/login/callback" else send)
        except _Refused as exc:
            await _respond(send, exc.status, json.dumps({"detail": str(exc)}))

    def _who(self, scope: Scope, headers: Headers) -> Visitor:
        """Another site's page can have a browser ask, from this machine and with its cookie: neither counts then.  Nor
        does this machine where everyone on it is an operator, if a proxy asks for others from here."""
        own = _is_own(headers) and not (self.access.open and _through_a_proxy(headers))
        return self.access.identify(_address(scope), _cookie(headers), own)

    def _framed(self, send: Send) -> Send:
        """Only the app itself, and the hub that shows a Space, may have the page in a frame: a click in another site's
        frame would count as one on the page."""

        async def framed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), self._frames]
            await send(message)

        return framed

    def _check_name(self, headers: Headers) -> None:
        if not self.access.answers_to(_host(headers.get(b"host", "localhost"))):
            why = "set QLORA_DEMO_PASSWORD and restart to use another name or a proxy"
            raise _Refused(403, f"everyone is an operator here, so only 127.0.0.1 and localhost are answered to; {why}")

    async def _checked(self, path: str, headers: Headers, visitor: Visitor, receive: Receive) -> Receive:
        """What the app may receive of this request; raises `_Refused`."""
        operator = visitor.role == "operator"
        limits = self.access.limits
        most = _VISITORS_CALL_BYTES + _PROMPT_BYTES * limits.visitor_prompt_chars
        if operator:
            most = _CALL_BYTES + (limits.upload_mb << 20)
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        receive = _bounded(receive, most)
        if path.startswith("/monitoring"):
            raise _Refused(404, f"{path[:100]}: this app does not offer that")
        if not path.startswith(_API):
            return receive
        route, _, rest = path.removeprefix(_API).replace("=", "/", 1).partition("/")
        if route not in _OFFERED or rest.lower().startswith(("http:", "https:")):
            raise _Refused(404, f"{path[:100]}: this app does not offer that")
        if route in _OPERATORS:
            self._require(visitor, "operator")
        if operator or route not in _CALLS:
            return receive
        body = await _read(receive)
        self._check_call(body, rest.removeprefix("v2/").strip("/"), visitor)
        return _again(body, receive)

    def _check_call(self, body: bytes, name: str, visitor: Visitor) -> None:
        """A call's handler is one for visitors, and none of its values is a file."""
        if not body:
            return
        try:
            fields = json.loads(body)
            number = fields.get("fn_index")
            file = _holds_file(fields)
        except (ValueError, AttributeError, RecursionError) as exc:
            raise _Refused(400, "the request is no call of a handler") from exc
        self._require(visitor, self.needs(name if number is None else number))
        if file:
            raise _Refused(403, "visitors send no files")
        self._admit(replace(visitor, page=str(fields.get("session_hash") or "")[:64]))

    def _admit(self, visitor: Visitor) -> None:
        """One more call of a visitor's page, which should have read what its earlier ones brought."""
        waiting, in_all = self.unread(visitor.page)
        if waiting > _UNREAD or (waiting and in_all > _UNREAD_IN_ALL):
            raise _Refused(429, f"{waiting} calls and messages wait for this page; read them, or reload it")
        try:
            self.access.admit(visitor)
        except TooMany as exc:
            raise _Refused(429, str(exc)) from exc

    def _require(self, visitor: Visitor, needs: Any) -> None:
        try:
            self.access.require(visitor, needs)
        except Forbidden as exc:
            raise _Refused(403, str(exc)) from exc

    async def _sign(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """The two forms on the page; the password goes no further than here."""
        if path == "/sign-out":
            self.access.sign_out(_cookie({name: value.decode("latin-1") for name, value in scope["headers"]}))
            await _respond(send, 303, "", [(b"location", b"./"), _set_cookie(scope, "", 0)])
            return
        form = parse_qs((await _read(_bounded(receive, _FORM_BYTES))).decode("utf-8", "replace"))
        try:
            session = self.access.sign_in(form.get("password", [""])[0], _address(scope))
        except RequestError as exc:
            why = b"wait" if isinstance(exc, TooMany) else b"wrong"
            await _respond(send, 303, "", [(b"location", b"./?sign-in=" + why)])
        else:
            await _respond(send, 303, "", [(b"location", b"./"), _set_cookie(scope, session, SESSION_SECONDS)])

    def _signed_by_hub(self, scope: Scope, send: Send) -> Send:
        """Take what the hub said out of Gradio's cookie, which would leave the token in the browser, into a session."""

        async def take(message: Message) -> None:
            info = scope.get("session", {}).pop("oauth_info", None)
            if message["type"] == "http.response.start" and info is not None:
                said = info.get("userinfo", {})
                user = HubUser(str(said.get("sub", "")), str(said.get("preferred_username", "")))
                session = self.access.sign_in_from_hub(user, str(info.get("access_token", "")))
                added = _set_cookie(scope, session, SESSION_SECONDS) if session else (b"location", b"../?sign-in=other")
                kept = [header for header in message["headers"] if session or header[0] != b"location"]
                message["headers"] = [*kept, added]
            await send(message)

        return take


def role_needed(page: Any) -> Callable[[Any], str]:
    """Tells the role that a handler of a built page needs; an operator's where the page knows no such handler."""

    def needs(which: Any) -> str:
        try:
            found = page.fns.get(int(which))
        except (TypeError, ValueError, OverflowError):
            found = next((handler for handler in page.fns.values() if handler.api_name == which), None)
        if found is None:
            return "operator"
        return "visitor" if found.fn is None else str(getattr(found.fn, "needs", "operator"))

    return needs


def unread_of(page: Any) -> Callable[[str], tuple[int, int]]:
    """Tells how many calls of a session have not ended or were not read to their end, and messages of a built page's
    handlers wait for it, together; and messages for all sessions."""

    def unread(session: str) -> tuple[int, int]:
        queues = page._queue.pending_messages_per_session
        waiting = len(page._queue.pending_event_ids_session.get(session, ()))
        waiting += queues[session].qsize() if session in queues else 0
        return waiting, sum(queue.qsize() for queue in list(queues.values())) if waiting else 0

    return unread


class _Refused(RequestError):
    """A request that goes no further, and the HTTP status that says so."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _too_large(most: int) -> _Refused:
    return _Refused(413, f"the request is larger than {most} bytes; send less")


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _is_own(headers: Headers) -> bool:
    """Whether the app's own page asks, or what is no page.  Browsers of before 2023, and all over plain HTTP from
    another machine, tell no Sec-Fetch-Site; a proxy may have changed the host that an Origin is compared with."""
    if site := headers.get(b"sec-fetch-site"):
        return site in ("same-origin", "none")
    origin = headers.get(b"origin")
    return origin is None or origin.partition("://")[2].lower() == headers.get(b"host", "").lower()


def _through_a_proxy(headers: Headers) -> bool:
    """Whether a proxy says so, or the browser does: its page has another name than this machine's."""
    origin = headers.get(b"origin", "null")
    elsewhere = origin != "null" and not is_loopback(_host(origin.partition("://")[2]))
    return elsewhere or not _PROXIED.isdisjoint(headers)


def _host(name: str) -> str:
    """The host of a Host header, without its port."""
    try:
        return urlsplit(f"//{name}").hostname or ""
    except ValueError:
        return ""


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _set_cookie(scope: Scope, value: str, seconds: int) -> tuple[bytes, bytes]:
    """Out of scripts' reach.  On a Space the page is a frame in another site's, and needs SameSite=None."""
    site = "Secure; SameSite=None; Partitioned" if scope.get("scheme") == "https" else "SameSite=Lax"
    return b"set-cookie", f"{COOKIE}={value}; Path=/; HttpOnly; {site}; Max-Age={seconds}".encode()


def _holds_file(value: Any) -> bool:
    """Whether Gradio would take some part of a JSON value for a file and fetch it."""
    left = [value]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if "path" in part and "meta" in part:
                return True
            left += part.values()
        elif isinstance(part, list):
            left += part
    return False


def _bounded(receive: Receive, most: int) -> Receive:
    got = 0

    async def bounded() -> Message:
        nonlocal got
        message = await receive()
        got += len(message.get("body", b""))
        if got > most:
            raise _too_large(most)
        return message

    return bounded


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever comes after it."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def _respond(send: Send, status: int, text: str, headers: Any = ()) -> None:
    told = [(b"content-type", b"application/json"), (b"cache-control", b"no-store"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": text.encode()})
