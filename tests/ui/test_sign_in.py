"""Signing in with Hugging Face, from the link on the page to an operator's session; the hub is a stand-in over HTTP."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from qlora_demo.compose import build_services
from qlora_demo.services import Services
from qlora_demo.ui.door import COOKIE
from qlora_demo.visitors.access import SESSION_SECONDS
from tests.calls import opened
from tests.open_id import TOKEN, OpenId, answering, code

pytestmark = pytest.mark.slow


@pytest.fixture
def open_id() -> Iterator[OpenId]:
    with answering() as made:
        yield made


@dataclass
class Space:
    """A Space whose operator is Ada, and whose creator is Eve."""

    services: Services
    page: Any
    open_id: OpenId


class Browser:
    """A browser's cookies, of which those for https go over this machine's http too: a Space's proxy has the TLS."""

    def __init__(self, space: Space) -> None:
        headers = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.7"}
        self.http = httpx.Client(base_url=str(space.page.local_url), headers=headers, timeout=30)
        self.space = space
        self.cookies: dict[str, str] = {}
        self.seen: list[str] = []

    def get(self, path: str) -> httpx.Response:
        return self._kept(self.http.get(path, headers=self._headers()))

    def sign_in(self, name: str) -> httpx.Response:
        """Follow the link on the page, say yes on the hub, and come back."""
        asked = self.get("/login/huggingface?_target_url=/").headers["location"]
        assert asked.startswith(f"{self.space.open_id.url}/oauth/authorize?")
        query = {key: found[0] for key, found in parse_qs(urlsplit(asked).query).items()}
        back = urlsplit(query["redirect_uri"])
        return self.get(f"{back.path}?{back.query}&code={code(name, query['nonce'])}&state={query['state']}")

    def uploads(self) -> int:
        return self.http.post("/gradio_api/upload", files={"files": b"x"}, headers=self._headers()).status_code

    def _headers(self) -> dict[str, str]:
        return {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}

    def _kept(self, answer: httpx.Response) -> httpx.Response:
        self.seen += [answer.text, *(f"{name}: {value}" for name, value in answer.headers.multi_items())]
        for one in answer.headers.get_list("set-cookie"):
            name, _, value = one.partition(";")[0].partition("=")
            self.cookies[name] = value
        return answer


@pytest.fixture
def space(services: Services, open_id: OpenId, monkeypatch: pytest.MonkeyPatch) -> Space:
    monkeypatch.setattr("gradio.oauth.get_space", lambda: "eve/demo")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    monkeypatch.delenv("SPACE_HOST", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    chosen = {"OAUTH_CLIENT_ID": "the-app", "OAUTH_CLIENT_SECRET": "s3cret", "OAUTH_SCOPES": "openid profile"}
    for name, value in (chosen | {"OPENID_PROVIDER_URL": open_id.url}).items():
        monkeypatch.setattr(f"gradio.oauth.{name}", value)
    settings = replace(services.settings, space="eve/demo", hub_sign_in=True, operators=("ada",), creator="id-3")
    made = build_services(settings)
    return Space(made, opened(made), open_id)


@pytest.fixture
def browser(space: Space) -> Iterator[Browser]:
    made = Browser(space)
    yield made
    made.http.close()


def readable(cookie: str) -> str:
    """A cookie, and what its parts hold where they are base64, as Gradio's own are."""
    parts = [part + "=" * (-len(part) % 4) for part in cookie.split(".")]
    return cookie + "".join(base64.b64decode(part, altchars=b"-_").decode("latin-1") for part in parts)


@pytest.mark.parametrize(("person", "name"), [("ada", "Ada"), ("eve", "eve")])
def test_a_named_user_and_the_creator_become_operators_and_the_token_stays_in_memory(
    space: Space, browser: Browser, person: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert browser.uploads() == 403
    answer = browser.sign_in(person)
    assert (answer.status_code // 100, answer.headers["location"]) == (3, "/")
    [cookie] = [one for one in answer.headers.get_list("set-cookie") if one.startswith(COOKIE)]
    kept = {"Path=/", "HttpOnly", "Secure", "SameSite=None", "Partitioned", f"Max-Age={SESSION_SECONDS}"}
    assert set(cookie.split("; ")[1:]) == kept
    assert browser.uploads() == 200
    held = space.services.access.identify("", browser.cookies[COOKIE])
    assert (held.role, held.name, held.token) == ("operator", name, TOKEN)
    said = "".join([*browser.seen, *map(readable, browser.cookies.values()), caplog.text])
    files = [path.read_bytes() for path in space.services.settings.home.rglob("*") if path.is_file()]
    for part in (TOKEN, *TOKEN.removeprefix("hf_oauth_").split(".")):
        assert part not in said and not [one for one in files if part.encode() in one]


def test_a_stranger_is_told_so_and_stays_a_visitor(browser: Browser) -> None:
    answer = browser.sign_in("bob")
    assert (answer.status_code // 100, answer.headers.get_list("location")) == (3, ["../?sign-in=other"])
    assert COOKIE not in browser.cookies and browser.uploads() == 403
    assert TOKEN not in "".join([*browser.seen, *map(readable, browser.cookies.values())])


def test_a_callback_that_nobody_asked_for_makes_no_operator(space: Space, browser: Browser) -> None:
    answer = browser.get("/login/callback?code=ada.guessed&state=made-up")
    assert "/login/huggingface" in answer.headers["location"]
    assert COOKIE not in browser.cookies and browser.uploads() == 403
