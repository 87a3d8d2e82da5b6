"""A real server process and a real Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from qlora_demo.runs import RunStore
from qlora_demo.settings import Settings
from tests.calls import free_port

ROOT = Path(__file__).parents[2]


class Server:
    """`python app.py` on a free port and the home that the environment names; after `kill`, `start` starts it on the
    same ones."""

    def __init__(self, log: Path) -> None:
        self.home, self.log = Path(os.environ["QLORA_DEMO_HOME"]), log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        temporary = self.log.with_name("temporary")  # where no home lies, as on a person's machine
        temporary.mkdir(exist_ok=True)
        environ = os.environ | {"GRADIO_SERVER_PORT": str(self.port), "GRADIO_SERVER_NAME": "127.0.0.1"}
        environ |= {"TMPDIR": str(temporary), "QLORA_DEMO_HOME": str(self.home)}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=environ, stdout=log, stderr=subprocess.STDOUT
            )
        for _ in range(1200):
            if self.process.poll() is not None:
                break
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        raise AssertionError(self.log.read_text("utf-8"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def empty(self) -> None:
        """Forget every run, vote and upload; what still trains is stopped first."""
        runs = RunStore(Settings(self.home).runs)
        for run in runs.all():
            if not run.state.ended:
                runs.request_stop(run.id)
            while runs.get(run.id).alive:
                time.sleep(0.1)
        for path in self.home.iterdir():
            if path.name != "models" and path.suffix != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="session")
def app(bundled_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One app for all tests: starting it takes longer than most of them."""
    folder = tmp_path_factory.mktemp("app")
    home = folder / "home"
    home.mkdir()
    (home / "models").symlink_to(bundled_models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_DEMO_HOME", str(home))
        made = Server(folder / "app.log")
    yield made
    made.kill()


@pytest.fixture
def server(app: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The app on an empty home, which is this test's too."""
    monkeypatch.setenv("QLORA_DEMO_HOME", str(app.home))
    yield app
    app.empty()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page on the server that fails the test on any uncaught script error."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    yield opened
    context.close()
    assert errors == []
