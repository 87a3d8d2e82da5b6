"""Who asks, and what they may do: visitors look, chat and vote; operators do everything else.

A *visitor* is an address and a page.  The address is the connection's, or what the last trusted proxy says it is; what
a caller writes into X-Forwarded-For itself stands further left and is not read.  The page is Gradio's session hash,
which the browser draws when the page is opened: a script can pretend to be many pages, so limits are counted by page
(people in one room share an address), by address, and in all.

An *operator* holds a session: a random name in a cookie out of scripts' reach, given for the password or for a listed
name that the hub vouches for.  The hub's token stays with the session, in this process's memory.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigError, Forbidden
from ..settings import Settings, variable
from .rates import Rate

Role = Literal["visitor", "operator"]
SESSION_SECONDS = 12 * 3600
_MOST_SESSIONS = 100
_FROM_HERE = "ask from the app's own page on this machine; behind a proxy set QLORA_DEMO_PASSWORD"


@dataclass(frozen=True)
class Visitor:
    """Who asks.  ``name`` and ``token`` are an operator's on the hub, where that is how they signed in."""

    role: Role = "visitor"
    address: str = ""
    page: str = ""
    name: str = ""
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class HubUser:
    """Who the hub says has signed in."""

    id: str
    name: str


@dataclass(frozen=True)
class _Session:
    until: float
    name: str = ""
    token: str = field(default="", repr=False)


class Access:
    """Decides for one app, which answers on ``host``.  Sessions live as long as the process, at most twelve hours."""

    def __init__(self, settings: Settings, now: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self.host = settings.host
        self.limits = limits = settings.limits
        self._now = now
        self._sessions: dict[bytes, _Session] = {}
        self._attempts = Rate(limits.sign_ins, now)
        self._pages, self._addresses = Rate(limits.visitor_requests, now), Rate(limits.address_requests, now)
        self._all = Rate(limits.all_requests, now)
        self._calls, self._address_calls = Rate(limits.page_calls, now), Rate(limits.address_calls, now)
        self._opened = Rate(limits.address_pages, now)

    @property
    def open(self) -> bool:
        """Whether everyone is an operator: on a machine of one's own, from that machine, where nothing else was asked
        for."""
        chosen = self.settings
        return is_loopback(self.host) and not (chosen.is_space or chosen.shared or chosen.operators or chosen.password)

    @property
    def trouble(self) -> str:
        """Why nobody can be an operator; empty where somebody can."""
        chosen = self.settings
        named = chosen.operators or chosen.creator
        if self.open or chosen.password or (chosen.hub_sign_in and named):
            return ""
        off, why = "Training is off and nobody is an operator", "QLORA_DEMO_PASSWORD is not set"
        if not (chosen.is_space or chosen.shared or chosen.operators):
            return f"{off}: strangers may reach {self.host} and {why}. Set it and restart; 127.0.0.1 needs none."
        if not chosen.hub_sign_in:
            why += " and nobody can sign in with Hugging Face here (a Space whose README says hf_oauth: true)"
        else:
            why += " and QLORA_DEMO_OPERATORS names nobody"
        return f"{off}: {why}. Set one of them as a secret and restart."

    def answers_to(self, name: str) -> bool:
        """Whether the app may be asked by this name.  Where everyone is an operator, only by one of this machine's: any
        other can be another site's, led here so that its pages pass for the app's own (DNS rebinding)."""
        return not self.open or is_loopback(name)

    def identify(self, address: str, session: str = "", own: bool = True) -> Visitor:
        """Who asks from an address, and may hold a session; who does not ask by their ``own`` will is a visitor, and so
        is another machine where everyone on this one is an operator."""
        place, held = _network(address), self._sessions.get(_digest(session))
        if own and held is not None and held.until > self._now():
            return Visitor("operator", place, name=held.name, token=held.token)
        here = own and self.open and (not address or is_loopback(address))
        return Visitor("operator" if here else "visitor", place)

    def require(self, visitor: Visitor, needs: Role) -> None:
        """Raises `Forbidden` where the visitor is not what is needed."""
        if needs == "operator" and visitor.role != "operator":
            sign_in = "sign in at the top of the page, or duplicate the app and use your own"
            remedy = self.trouble or (_FROM_HERE if self.open else sign_in)
            raise Forbidden(f"role: you are a visitor, and only operators may do this; {remedy}")

    def sign_in(self, password: str, address: str) -> str:
        """A new session for whoever knows the password; what the browser must show from then on.

        Raises `TooMany` where this address tried too often, and `ConfigError` for a wrong password.
        """
        self._attempts.spend(_network(address), f"sign-in ({variable('sign_ins')})")
        expected = self.settings.password
        if not hmac.compare_digest(_digest(password), _digest(expected)) or not expected:
            raise ConfigError("password", "it is wrong; ask whoever runs this app")
        return self._begin(_Session(self._now() + SESSION_SECONDS))

    def sign_in_from_hub(self, user: HubUser, token: str) -> str:
        """A new session for whom the hub has signed in; empty where that is no operator."""
        created = bool(self.settings.creator) and user.id == self.settings.creator
        if not created and user.name.casefold() not in {name.casefold() for name in self.settings.operators}:
            return ""
        return self._begin(_Session(self._now() + SESSION_SECONDS, user.name, token))

    def sign_out(self, session: str) -> None:
        """Forget a session."""
        self._sessions.pop(_digest(session), None)

    def spend(self, visitor: Visitor) -> None:
        """Count one request that costs something; raises `TooMany` beyond a visitor's, an address's or all limits."""
        if visitor.role == "operator":
            return
        self._pages.spend(f"{visitor.address} {visitor.page}", f"requests ({variable('visitor_requests')})")
        self._addresses.spend(visitor.address, f"requests from your address ({variable('address_requests')})")
        self._all.spend("", f"requests of all visitors ({variable('all_requests')})")

    def admit(self, visitor: Visitor) -> None:
        """Count one call of any kind, those included that an open page makes by itself; raises `TooMany`."""
        page = f"{visitor.address} {visitor.page}"
        if not self._calls.count(page):
            self._opened.spend(visitor.address, f"pages opened from your address ({variable('address_pages')})")
        self._calls.spend(page, f"calls of this page ({variable('page_calls')})")
        self._address_calls.spend(visitor.address, f"calls from your address ({variable('address_calls')})")

    @property
    def requests(self) -> int:
        """How many of visitors' requests were counted in the last minute."""
        return self._all.count("")

    def _begin(self, session: _Session) -> str:
        name = secrets.token_urlsafe(32)
        self._sessions = {key: held for key, held in self._sessions.items() if held.until > self._now()}
        while len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[_digest(name)] = session
        return name


def _digest(text: str) -> bytes:
    """Of one length whatever the text, so that comparing tells nothing; what is kept lets nobody in."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it; what is neither an address nor ``localhost`` may lead anywhere."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _network(address: str) -> str:
    """An IPv4 address, or the /64 network of an IPv6 one: a single household has that many addresses."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    return str(parsed if parsed.version == 4 else ipaddress.ip_network((parsed, 64), strict=False))
