"""A raw HTTP call by a visitor, to whatever an operator may do, is refused and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Limits, Settings
from qlora_demo.ui.page import open_page
from qlora_demo.upkeep.status import AppStatus
from tests.calls import Client, free_port, numbers, opened, quietly

PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A launched app with a password and one finished run, that ends with the tests; the engine is never made."""
    home = tmp_path_factory.mktemp("home")
    services = build_services(Settings(home, password=PASSWORD, limits=Limits(upload_mb=1, sign_ins=20)))
    run = services.runs.create(TrainConfig())
    run.adapter.mkdir()
    write_state(run.path, RunState(status="finished"))
    page = opened(services)
    return SimpleNamespace(home=home, services=services, page=page, url=str(page.local_url), run=run.id)


@pytest.fixture
def visitor(app: SimpleNamespace) -> Iterator[Client]:
    with Client(app.url) as client:
        yield client


@pytest.fixture
def operator(app: SimpleNamespace) -> Iterator[Client]:
    with Client(app.url) as client:
        assert client.sign_in(PASSWORD).headers["location"] == "./"
        yield client


def operators_handlers(page: Any) -> list[int]:
    return [number for number, handler in page.fns.items() if getattr(handler.fn, "needs", "") == "operator"]


def everything(home: Path) -> dict[str, bytes]:
    """All files below the home."""
    return {str(path): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("way", ["queue", "run", "call", "number as text", "name"])
def test_no_visitor_reaches_an_operator_s_handler(app: SimpleNamespace, visitor: Client, way: str) -> None:
    before = everything(app.home)
    for number in operators_handlers(app.page):
        handler = app.page.fns[number]
        data = [app.run if name == "Dropdown" else None for name in (type(part).__name__ for part in handler.inputs)]
        body = {"fn_index": number, "data": data, "session_hash": visitor.session}
        if way == "queue":
            answer = visitor.join(number, data)
        elif way == "number as text":
            answer = visitor.join(str(number), data)
        elif way == "run":
            answer = visitor.http.post(f"/gradio_api/run/{handler.api_name}", json=body)
        elif way == "name":
            answer = visitor.http.post(f"/gradio_api/api/{handler.api_name}", json={"data": data})
        else:
            answer = visitor.http.post(f"/gradio_api/call/{handler.api_name}", json={"data": data})
        assert answer.status_code == 403, (number, handler.name, answer.text)
        assert "you are a visitor, and only operators may do this" in answer.json()["detail"]
    assert everything(app.home) == before
    assert app.services.jobs.last is None


def test_the_handler_refuses_by_itself_what_the_door_lets_through(
    app: SimpleNamespace, visitor: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.ui.door.Door._check_call", lambda *_: None)
    visitor.open(app.page)
    before = everything(app.home)
    calls = {
        "delete_named": [app.run],
        "stop": [app.run],
        "release": [None],
        "annotate": [[app.run], f"{app.run}@0", "a", "b"],
    }
    for name, data in calls.items():
        ended = visitor.call(numbers(app.page, name)[0], data)
        assert ended["success"] is False
        assert "you are a visitor, and only operators may do this" in ended["output"]["error"], name
    assert everything(app.home) == before


def test_an_operator_does_reach_them(app: SimpleNamespace, operator: Client) -> None:
    operator.open(app.page)
    [number] = numbers(app.page, "annotate")
    assert operator.call(number, [[app.run], f"{app.run}@0", "a note", "tag"])["success"]
    assert "a note" in b"".join(everything(app.home).values()).decode("utf-8", "replace")


def test_where_things_lie_is_told_to_operators_only(home: Path) -> None:
    status = AppStatus()
    status.found = {"version": "1.2.3", "home": str(home)}
    services = build_services(Settings(home, password=PASSWORD))
    page = quietly(lambda: open_page(services, status, "127.0.0.1", free_port()))
    [number] = numbers(page, "found")
    with Client(str(page.local_url)) as client:
        said = client.call(number, [])["output"]["data"][0]
        assert "1.2.3" in said and "home" not in said
        client.sign_in(PASSWORD)
        assert str(home) in client.call(number, [])["output"]["data"][0]
    page.close()


@pytest.mark.parametrize("body", ["", "[]", "nothing", '{"fn_index": ', "[" * 50_000, '{"data": []}'])
def test_what_is_no_call_of_a_handler_is_refused(visitor: Client, body: str) -> None:
    headers = {"content-type": "application/json"}
    answer = visitor.http.post("/gradio_api/queue/join", content=body, headers=headers)
    assert answer.status_code in (400, 403, 422)


def test_visitors_upload_nothing_and_send_no_files(app: SimpleNamespace, visitor: Client) -> None:
    assert visitor.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
    [where] = numbers(app.page, "choose_run")
    for path in ("http://example.com/huge", "/etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        answer = visitor.join(where, [[{"deep": file}]])
        assert (answer.status_code, answer.json()["detail"]) == (403, "visitors send no files")


def test_uploads_and_requests_are_bounded(visitor: Client, operator: Client) -> None:
    assert operator.http.post("/gradio_api/upload", files={"files": b"x" * (1 << 19)}).status_code == 200
    assert operator.http.post("/gradio_api/upload", files={"files": b"x" * (3 << 20)}).status_code == 413
    assert visitor.join(0, ["x" * (2 << 20)]).status_code == 413

    def slowly() -> Iterator[bytes]:
        for _ in range(4):
            yield b"x" * (1 << 19)

    headers = {"content-type": "application/json"}
    answer = visitor.http.post("/gradio_api/queue/join", content=slowly(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/gradio_api/file=http://127.0.0.1/",
        "/gradio_api/file=HTTPS://example.com/",
        "/gradio_api/run-history/records",
        "/gradio_api/runs",
        "/gradio_api/vibe-code",
    ],
)
def test_routes_that_the_page_does_not_use_are_closed(operator: Client, path: str) -> None:
    answer = operator.http.get(path)
    assert (answer.status_code, "does not offer that" in answer.text) == (404, True)


def test_no_file_of_the_machine_is_served(app: SimpleNamespace, operator: Client) -> None:
    run = app.home / "runs" / app.run
    for path in ("/etc/passwd", run / "config.json", run / "../../votes.sqlite3", "app.py", "qlora_demo/settings.py"):
        assert operator.http.get(f"/gradio_api/file={path}").status_code == 403, path


def test_the_password_is_asked_for_and_its_session_stays_out_of_reach(visitor: Client) -> None:
    client = visitor
    assert client.sign_in("wrong").headers["location"] == "./?sign-in=wrong"
    assert client.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
    answer = client.sign_in(PASSWORD)
    assert answer.status_code == 303
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    assert PASSWORD not in str(answer.headers)
    assert client.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 200
    client.http.post("/sign-out")
    assert client.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403


def test_behind_https_the_session_is_sent_by_nothing_else(app: SimpleNamespace) -> None:
    with Client(app.url, **{"x-forwarded-proto": "https", "x-forwarded-for": "8.8.8.8"}) as client:
        assert {"Secure", "SameSite=None"} <= set(client.sign_in(PASSWORD).headers["set-cookie"].split("; "))


@pytest.mark.parametrize(("site", "status"), [("same-origin", 200), ("cross-site", 403), ("same-site", 403)])
def test_another_site_cannot_use_an_operator_s_session(operator: Client, site: str, status: int) -> None:
    headers = {"sec-fetch-site": site}
    assert operator.http.post("/gradio_api/upload", files={"files": b"x"}, headers=headers).status_code == status


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "https://evil.example"}])
def test_another_site_s_page_signs_nobody_out_or_in(
    app: SimpleNamespace, operator: Client, visitor: Client, headers: dict[str, str]
) -> None:
    for who, form in ((operator, "sign-out"), (visitor, "sign-in")):
        answer = who.http.post(f"/{form}", data={"password": PASSWORD}, headers=headers)
        assert answer.status_code == 403 and "set-cookie" not in answer.headers
        assert answer.json()["detail"] == f"{form}: another site's page asked for it; do it on the app's own page"
    assert operator.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 200


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a launched app on which everyone is an operator."""
    return str(opened(build_services(Settings(tmp_path_factory.mktemp("open")))).local_url)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "own"}, 200),
        ({"origin": "own", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://proxy.example"}, 403),
        ({"x-forwarded-for": "8.8.8.8"}, 403),
        ({"x-forwarded-host": "demo.example", "sec-fetch-site": "same-origin"}, 403),
        ({"forwarded": "for=8.8.8.8"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_another_site_s_page_is_no_operator_where_everyone_is(
    open_app: str, headers: dict[str, str], status: int
) -> None:
    own = open_app.rstrip("/")
    with Client(open_app, **{name: own if value == "own" else value for name, value in headers.items()}) as client:
        answer = client.http.post("/gradio_api/upload", files={"files": b"x"})
    assert answer.status_code == status
    assert status == 200 or "ask from the app's own page" in answer.json()["detail"]


def test_a_link_on_another_site_still_opens_the_page(open_app: str) -> None:
    with Client(open_app, **{"sec-fetch-site": "cross-site"}) as client:
        assert client.http.get("/").status_code == 200


NAMES = {"localhost:7860": 200, "[::1]:7860": 200} | dict.fromkeys(["evil.example:7860", "10.0.0.9", "[", ""], 403)


@pytest.mark.parametrize(("host", "status"), NAMES.items())
def test_a_name_that_strangers_may_have_led_here_is_not_answered_to(open_app: str, host: str, status: int) -> None:
    with Client(open_app, **{"host": host, "sec-fetch-site": "same-origin"}) as client:
        answers = [client.http.get(path) for path in ("/", "/config", "/healthz")]
        answers.append(client.http.post("/gradio_api/upload", files={"files": b"x"}))
    assert {answer.status_code for answer in answers} == {status}
    assert status == 200 or "set QLORA_DEMO_PASSWORD and restart" in answers[0].json()["detail"]


def test_where_there_is_a_password_any_name_is_answered_to(app: SimpleNamespace) -> None:
    with Client(app.url, host="demo.example") as client:
        assert client.http.get("/config").status_code == 200
        assert client.sign_in(PASSWORD).headers["location"] == "./"


def test_where_strangers_reach_the_app_nobody_is_an_operator_and_the_page_says_why(home: Path) -> None:
    services = build_services(Settings(home))
    page = quietly(lambda: open_page(services, AppStatus(), "0.0.0.0", free_port()))
    with Client(f"http://127.0.0.1:{page.server_port}") as client:
        assert client.http.post("/gradio_api/upload", files={"files": b"x"}).status_code == 403
        [who] = numbers(page, "who")
        [line] = client.call(who, [])["output"]["data"]
    assert "Training is off and nobody is an operator: strangers may reach 0.0.0.0" in line


def test_guessing_the_password_is_slowed_down(app: SimpleNamespace) -> None:
    with Client(app.url, **{"x-forwarded-for": "203.0.113.9"}) as client:
        outcomes = [client.sign_in("guess").headers["location"] for _ in range(21)]
    assert (outcomes[0], outcomes[-1]) == ("./?sign-in=wrong", "./?sign-in=wait")


def test_the_configuration_that_everybody_gets_holds_no_secret(app: SimpleNamespace, visitor: Client) -> None:
    assert PASSWORD not in visitor.http.get("/").text + visitor.http.get("/config").text
