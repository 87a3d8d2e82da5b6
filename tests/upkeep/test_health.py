"""What `/healthz` answers, which tests/test_container.py asks a real app for, and what is kept for who asks again."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from qlora_demo import __version__
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.ui.healthz import healthz
from qlora_demo.upkeep.health import Kept, facts
from tests.calls import Client, numbers, opened
from tests.conftest import Disk

pytestmark = pytest.mark.slow


@pytest.fixture
def client(services: Services) -> TestClient:
    """Who asks."""
    return TestClient(Starlette(routes=[healthz(services)]))


def test_it_says_what_the_app_is_doing(client: TestClient, services: Services) -> None:
    run = services.runs.create(TrainConfig())
    write_state(run.path, RunState(status="queued"))
    held = services.lease.acquire("training", run.id)
    found = client.get("/healthz").json()
    held.release()
    assert found.pop("uptime_seconds") > 0 and found.pop("disk_free_bytes") > 0
    assert found == {
        "version": __version__,
        "device_holder": f"training {run.id}",
        "queued_runs": 1,
        "resident_models": [],
        "home_writable": True,
    }
    head = client.head("/healthz")
    assert (head.status_code, head.content) == (200, b"")


def test_it_is_503_where_the_home_cannot_be_written(client: TestClient, home: Path) -> None:
    home.rmdir()
    home.write_text("a file", "utf-8")
    answer = client.get("/healthz")
    assert answer.status_code == 503
    found = answer.json()
    assert not found["home_writable"]
    assert (found["device_holder"], found["queued_runs"], found["disk_free_bytes"]) == (None, None, None)


def test_it_is_503_where_the_disk_is_full(disk: Disk) -> None:
    small = disk(64)
    client = TestClient(Starlette(routes=[healthz(build_services(Settings(small)))]))
    with suppress(OSError), (small / "filler").open("wb", buffering=0) as filler:
        while filler.write(b"x" * 1024):
            pass
    assert client.get("/healthz").status_code == 503
    assert [path.name for path in small.iterdir()] == ["filler"]
    assert Settings.from_environment({"QLORA_DEMO_HOME": str(small)}).home == small, "something can be deleted there"


def test_it_is_503_where_the_disk_takes_no_more_files(disk: Disk) -> None:
    small = disk(64)
    client = TestClient(Starlette(routes=[healthz(build_services(Settings(small)))]))
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", str(small)], check=True)
    assert client.get("/healthz").status_code == 503
    with pytest.raises(ConfigError, match=f"^QLORA_DEMO_HOME: {small} cannot be written"):
        Settings.from_environment({"QLORA_DEMO_HOME": str(small)})


def test_who_asks_often_gets_the_same_answer(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    probes: list[Path] = []
    monkeypatch.setattr("qlora_demo.upkeep.health.usable_home", probes.append)
    monkeypatch.setattr("qlora_demo.ui.healthz.KEPT_SECONDS", 3600.0)
    client = TestClient(Starlette(routes=[healthz(services)]))
    first, *others = [client.get("/healthz").json() for _ in range(20)]
    assert others == [first] * 19
    assert len(probes) == 1


def test_it_leaves_nothing_in_the_home(services: Services, home: Path) -> None:
    facts(services)
    assert list(home.iterdir()) == []


def test_it_is_read_again_after_its_seconds_and_not_before() -> None:
    reads, clock = [0], [100.0]

    def read() -> int:
        reads[0] += 1
        return reads[0]

    kept = Kept(read, 4.0, lambda: clock[0])
    assert (kept(), kept()) == (1, 1)
    clock[0] += 3.9
    assert kept() == 1
    clock[0] += 0.1
    assert (kept(), kept()) == (2, 2)


def test_what_could_not_be_read_is_not_kept() -> None:
    answers = iter([1, 0])
    kept = Kept(lambda: 1 // (1 - next(answers)), 4.0)
    with pytest.raises(ZeroDivisionError):
        kept()
    assert kept() == 1


def test_who_asks_while_it_is_read_waits_for_the_one_reading() -> None:
    reading, done, reads = threading.Event(), threading.Event(), []

    def read() -> int:
        reads.append(1)
        reading.set()
        done.wait()
        return len(reads)

    kept = Kept(read, 3600.0)
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(kept)
        reading.wait()
        others = [threads.submit(kept) for _ in range(7)]
        done.set()
    assert [one.result() for one in (first, *others)] == [1] * 8


def test_open_pages_share_one_reading_of_the_device(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    monkeypatch.setattr("qlora_demo.gpu._nvidia", lambda: reads.append(1))
    monkeypatch.setattr("qlora_demo.ui.page._DEVICE_SECONDS", 3600.0)
    page = opened(services)
    reads.clear()
    for number in numbers(page, "where") * 3:
        with Client(str(page.local_url)) as client:
            assert "CPU" in client.call(number, [])["output"]["data"][0]
    assert len(reads) == 1


def test_an_app_that_nobody_uses_seldom_looks_for_calls(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = type(opened(services)._queue)
    count, looks = kind.__len__, list[None]()

    def look(queue: Any) -> Any:
        looks.append(None)
        return count(queue)

    monkeypatch.setattr(kind, "__len__", look)
    began = time.monotonic()
    time.sleep(1)
    assert 0 < len(looks) <= 200 * (time.monotonic() - began), "at a hundredth of a second, not a thousandth"
