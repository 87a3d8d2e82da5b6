"""Fresh homes, a tiny random model built in place, and the bundled model where truth needs it."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
from playwright.sync_api import Browser, BrowserType, expect, sync_playwright

from qlora_demo.catalog import SMOLLM2
from qlora_demo.compose import build_services
from qlora_demo.services import Services
from qlora_demo.settings import Settings

from .closing import closing
from .hub_server import OWNERS_TOKEN, HubServer

# A busy machine is no wrong result.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.load_profile("here")
# What takes longer says so; two cores that also train a model answer within this.
expect.set_options(timeout=30_000)

Disk = Callable[[int], Path]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


# Two files are tested at once on two cores: threads that wait for each other would cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is expected here is what a processor does; what a GPU does is measured by `benchmark` and benchmarks/.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# What the libraries make as they are imported stays, and would be looked through again and again.
gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, then what needs the bundled model."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0

    items.sort(key=lambda item: (-seconds(item), item.get_closest_marker("bundled") is None))


def pytest_collection_finish() -> None:
    """What is there by now stays; freeing a model collects, and would look through all of it each time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def _closed_with_its_module() -> Iterator[None]:
    """Pages that all tests of a file share."""
    yield from closing()


@pytest.fixture(autouse=True)
def _closed_with_its_test() -> Iterator[None]:
    yield from closing()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, also for the processes that a test starts."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("QLORA_DEMO_HOME", str(folder))
    return folder


@pytest.fixture
def services(home: Path) -> Iterator[Services]:
    """A fresh app's parts on an empty home."""
    made = build_services(Settings(home))
    yield made
    made.engine.release()


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The socket of a process that forks trainers and apps."""
    from tests.queueing import until

    address = tmp_path_factory.mktemp("zygote") / "socket"
    process = subprocess.Popen([sys.executable, "-m", "tests.zygote", str(address)])
    until(address.exists)
    yield str(address)
    process.kill()
    process.wait()


@pytest.fixture
def trainers(services: Services, zygote: str) -> list[int]:
    """The pids of the trainers of `services`, which are forked, where starting one takes longer than it trains."""
    from tests.zygote import spawn_through

    return spawn_through(zygote, services)


@pytest.fixture
def unusable_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that `nvidia-smi` lists and torch cannot use, also for the processes that a test starts."""
    answers = 'case "$*" in *driver_version*) echo 470.1;; *index*) echo 0;; *) echo "NVIDIA T4, 15000, 15360";; esac'
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{answers}\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-none")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama with random weights and a byte-level tokenizer with a ChatML template, saved as a folder."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def bundled_models() -> Path:
    """The folder that holds the bundled model, fetched once into the person's own home."""
    from qlora_demo.ml.fetch import fetch

    environ = {name: value for name, value in os.environ.items() if name != "QLORA_DEMO_HOME"}
    if shared := os.environ.get("QLORA_DEMO_TEST_HOME"):
        environ["QLORA_DEMO_HOME"] = shared
    settings = Settings.from_environment(environ)
    fetch(settings, SMOLLM2, lambda _: None)
    return settings.models


@pytest.fixture
def bundled_home(home: Path, bundled_models: Path) -> Path:
    """A fresh home that shares the fetched model."""
    (home / "models").symlink_to(bundled_models)
    return home


@pytest.fixture
def chat_file(tmp_path: Path) -> Path:
    """Forty chat rows as JSONL."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f'{{"n": {n}}}'}]}
        for n in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty hub that may be reached, asked again without waiting, and whose uploads leave no cache behind."""
    from huggingface_hub import constants
    from huggingface_hub.utils._xet import abort_xet_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    abort_xet_session()  # type: ignore[no-untyped-call]
    with HubServer(tmp_path / "hub", OWNERS_TOKEN) as running:
        yield running
    abort_xet_session()  # type: ignore[no-untyped-call]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a file system of so many KiB; mounting one needs root and a kernel that lets it."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this environment may not mount a small disk: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for every test that looks at a page: two would want the same loop."""
    with sync_playwright() as playwright:
        chromium = launched(playwright.chromium)
        yield chromium
        chromium.close()


def launched(kind: BrowserType, *more: str) -> Browser:
    """A Chromium of this machine's, or Playwright's own."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", *more]
    return kind.launch(executable_path=path, args=arguments)
