"""What `/healthz` answers; tests/test_container.py asks a real app for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from qlora_demo import __version__
from qlora_demo.config import TrainConfig
from qlora_demo.health import facts
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.ui.healthz import healthz


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


def test_it_leaves_nothing_in_the_home(services: Services, home: Path) -> None:
    facts(services)
    assert list(home.iterdir()) == []
