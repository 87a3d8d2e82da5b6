"""Nothing leaves the machine unless somebody asked for it; what the app itself asks for is the hub, and is told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.services import Services
from tests.browser.conftest import Server
from tests.ml.test_train import TINY, ended, wait
from tests.ml.test_variants import finished_run
from tests.robust.visitor import Page, Visitor

pytestmark = pytest.mark.processes

HUB = constants.ENDPOINT.partition("://")[2]
WATCHED = Path(__file__).parent / "watched"


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that takes every host that a Python of this test looks up or connects to, but this machine."""
    log = tmp_path / "sockets"
    log.touch()
    monkeypatch.setenv("QLORA_DEMO_TEST_SOCKETS", str(log))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(WATCHED), os.environ.get("PYTHONPATH", "")]))
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.delenv(name, raising=False)  # what the tests' own process has set
    return log


def test_the_watch_sees_what_would_leave(sockets: Path) -> None:
    script = "import urllib.request; urllib.request.urlopen('http://tracker.example/x')"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode
    assert sockets.read_text("utf-8").split() == ["tracker.example"]


def test_the_app_asks_for_nothing_but_the_hub_and_says_so(
    home: Path, services: Services, tiny_model: Path, sockets: Path, tmp_path: Path
) -> None:
    (home / "models").mkdir()
    (home / "models" / SMOLLM2.name).symlink_to(tiny_model)  # else pip fetches it, which the page tells
    run = finished_run(services, tiny_model, "qlora")
    server = Server(tmp_path / "app.log")
    try:
        assert Visitor(Page(server.url), run.id, ["base", "adapter"]).ask("hello").conversations
        while "hub.checked" not in server.log.read_text("utf-8"):
            time.sleep(0.1)
        time.sleep(1)  # libraries tell in the background
    finally:
        server.kill()
    assert sockets.read_text("utf-8").split() == [HUB]  # once, for the line on the page


def test_training_asks_for_nothing(services: Services, tiny_model: Path, chat_file: Path, sockets: Path) -> None:
    config = TrainConfig(model=str(tiny_model), dataset=str(chat_file), **TINY | {"max_steps": 1})
    run = wait(services, services.launcher.start(config), ended)
    assert run.state.status == "finished", services.runs.log_tail(run.id)
    assert sockets.read_text("utf-8") == ""
