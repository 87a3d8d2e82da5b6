"""The image and the Space, as far as they can be tried without a container engine or a hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from gradio.utils import get_space
from huggingface_hub import HfApi
from huggingface_hub.cli.hf import app as hf
from packaging.requirements import Requirement

from qlora_demo.catalog import SMOLLM2
from qlora_demo.settings import Settings
from qlora_demo.ui.healthz import KEPT_SECONDS
from qlora_demo.visitors.access import SESSION_SECONDS

from .calls import free_port
from .dockerfile import Instruction, environment, read_stages

ROOT = Path(__file__).resolve().parent.parent
BUILD, IMAGE = read_stages(ROOT / "Dockerfile")
SPACE_KEYS = {
    *("title", "emoji", "colorFrom", "colorTo", "sdk", "python_version", "sdk_version", "suggested_hardware"),
    *("app_file", "app_port", "base_path", "fullWidth", "header", "short_description", "models", "datasets", "tags"),
    *("thumbnail", "pinned", "hf_oauth", "hf_oauth_scopes", "hf_oauth_expiration_minutes", "disable_embedding"),
    *("startup_duration_timeout", "custom_headers", "preload_from_hub", "license"),
}
"""What the hub's reference of a Space's configuration documents; ``license`` is every repository's."""


def copies(stage: list[Instruction]) -> list[tuple[str, str]]:
    """What a stage copies from the checkout: source and target."""
    own = [one.words for one in stage if one.name == "COPY" and not one.stage]
    return [(source, target) for *sources, target in own for source in sources]


def last(name: str) -> Instruction:
    """The instruction of the image that counts, where each replaces the one before."""
    return [one for one in IMAGE if one.name == name][-1]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build."""
    return any(fnmatch(path, pattern) for pattern in (ROOT / ".dockerignore").read_text("utf-8").split())


@pytest.mark.parametrize("source", sorted({source for stage in (BUILD, IMAGE) for source, _ in copies(stage)}))
def test_what_is_copied_is_there_and_reaches_the_build(source: str) -> None:
    assert (ROOT / source).exists()
    assert not ignored(source)


def test_the_image_holds_no_compiler_and_runs_as_uid_1000() -> None:
    assert not [one for one in IMAGE if "apt-get" in one.value or "gcc" in one.value]
    assert last("USER").value == "1000"
    assert (last("EXPOSE").value, environment(IMAGE)["GRADIO_SERVER_PORT"]) == ("7860", "7860")


def test_the_app_s_files_are_root_s_and_lie_in_no_folder_of_the_user_s() -> None:
    app, names = Path(last("WORKDIR").value), [one.name for one in IMAGE]
    given = [one.words[-1] for one in IMAGE if one.name == "RUN" and "--owner=user" in one.value]
    assert not any(app.is_relative_to(folder) for folder in (environment(IMAGE)["HOME"], *given))
    assert names.index("WORKDIR") < names.index("USER")
    assert not [one for one in IMAGE if one.name == "COPY" and not one.stage and one.flags]


def test_what_only_its_owner_may_read_is_the_user_s() -> None:
    (models,) = [
        one for one in IMAGE if one.name == "COPY" and one.words[-1] == environment(IMAGE)["QLORA_DEMO_BUNDLED"]
    ]
    assert "--chown=1000:1000" in models.flags


def test_what_changes_least_comes_first() -> None:
    order = [one.value for one in BUILD if one.name == "COPY" or "pip install" in one.value]
    assert order[0] == "requirements.txt ." and "pip install" in order[1] and order[-1] == "qlora_demo qlora_demo"


def test_a_docker_space_lets_people_sign_in_with_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict.fromkeys(("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"), "set")
    there = environment(IMAGE) | given | {"SPACE_ID": "ada/demo", "QLORA_DEMO_HOME": str(tmp_path)}
    assert Settings.from_environment(there).hub_sign_in
    monkeypatch.setenv("SYSTEM", there["SYSTEM"])
    monkeypatch.setenv("SPACE_ID", there["SPACE_ID"])
    assert get_space() == "ada/demo"


SPY = """
import os, socket
def told(name, host):
    with open(os.environ["SPY_LOG"], "a") as log:
        print(name, host, file=log)
found, connect = socket.getaddrinfo, socket.socket.connect
def getaddrinfo(host, *args, **kwargs):
    told("asks for", host)
    return found(host, *args, **kwargs)
def connected(self, address):
    told("connects to", address[0] if isinstance(address, tuple) else "here")
    return connect(self, address)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, connected
"""
"""Run at the start of the app's Python: tells every name that is looked up and every address that is connected to."""
AT_HOME = {"127.0.0.1", "localhost", "0.0.0.0", "::1", "None", "here"}


class Container:
    """The image's app as nobody in particular, who may write to the disk and to a home of his own alone."""

    def __init__(self, folder: Path) -> None:
        self.app, home = (folder / path.strip("/") for path in (last("WORKDIR").value, environment(IMAGE)["HOME"]))
        self.disk, self.log = folder / "data", folder / "log"
        for source, target in copies(IMAGE):
            self._copy(ROOT / source, self.app / target)
        for path in (self.disk, home, folder / "shipped" / SMOLLM2.name):
            path.mkdir(parents=True, exist_ok=True)
            shutil.chown(path, *([1000, 1000] if os.getuid() == 0 else [os.getuid(), os.getgid()]))
        port = free_port()
        set_there = {"GRADIO_SERVER_PORT": str(port), "HOME": str(home)}
        disks = {"QLORA_DEMO_DISK": str(self.disk), "QLORA_DEMO_BUNDLED": str(folder / "shipped")}
        ours = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        self.spied = self.disk / "spied"
        (folder / "sitecustomize.py").write_text(SPY, "utf-8")
        watched = {"PYTHONPATH": str(folder), "SPY_LOG": str(self.spied), "HF_ENDPOINT": "http://127.0.0.1:9"}
        self.environ = environment(IMAGE) | ours | set_there | disks | watched | {"TMPDIR": str(self.disk)}
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        with self.log.open("wb") as log:
            command = self._as_nobody(last("CMD").words)
            self.process = subprocess.Popen(command, cwd=self.app, env=self.environ, stdout=log, stderr=log)

    def replaces(self, path: Path) -> bool:
        """Whether the app's user could put something else in the place of a file or a folder."""
        away = f"import os; os.rename({str(path)!r}, {str(path.with_name('away'))!r})"
        command = self._as_nobody(["python", "-c", away])
        return subprocess.run(command, env=self.environ, capture_output=True, check=False).returncode == 0

    def healthy(self) -> bool:
        """What the image's HEALTHCHECK finds."""
        command = self._as_nobody(last("HEALTHCHECK").words)
        return subprocess.run(command, env=self.environ, capture_output=True, check=False).returncode == 0

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)

    @staticmethod
    def _as_nobody(command: list[str]) -> list[str]:
        """The tests' Python, which may lie where only root may look: reading it is all that is kept of being root."""
        assert command[0] == "python"
        command = [sys.executable, *command[1:]]
        if os.getuid() != 0:
            return command
        nobody = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--no-new-privs"]
        reading = [f"--{kind}=-all,+dac_read_search" for kind in ("bounding-set", "inh-caps", "ambient-caps")]
        may_keep = subprocess.run([*nobody, *reading, "true"], capture_output=True, check=False).returncode == 0
        return [*nobody, *(reading if may_keep else []), *command]


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    made = Container(tmp_path)
    for path in (made.app, *made.app.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    made.start()
    yield made
    made.process.kill()
    made.process.wait()
    for path in (made.app, *made.app.rglob("*")):
        path.chmod(0o755)


@pytest.mark.processes
def test_the_copied_files_are_an_app_that_runs_without_rights_and_is_healthy(container: Container) -> None:
    before = sorted(container.app.rglob("*"))
    while not container.healthy():
        assert container.process.poll() is None, container.log.read_text("utf-8")
        time.sleep(0.3)
    assert os.getuid() != 0 or not any(map(container.replaces, (container.app, container.app / "app.py")))
    with urllib.request.urlopen(container.url) as page:
        assert b"gradio" in page.read()
    assert "strangers may reach 0.0.0.0 and QLORA_DEMO_PASSWORD is not set" in container.log.read_text("utf-8")
    with urllib.request.urlopen(f"{container.url}/healthz") as answer:
        assert json.load(answer)["home_writable"]
    assert (container.disk / "qlora_demo").is_dir()
    assert sorted(container.app.rglob("*")) == before
    status = Path(f"/proc/{container.process.pid}/status")
    if status.exists():
        assert "Uid:\t0\t" not in status.read_text("utf-8")
    hosts = {line.split()[-1] for line in container.spied.read_text("utf-8").splitlines()}
    assert "127.0.0.1" in hosts and hosts <= AT_HOME
    (container.disk / "qlora_demo").chmod(0o500)
    time.sleep(KEPT_SECONDS)
    assert not container.healthy()


@pytest.mark.parametrize("name", ["Dockerfile", "docs/deploy.md"])
def test_where_the_app_is_run_from_the_image_what_the_hub_gave_lies_on_the_volume(name: str) -> None:
    (given,) = re.findall(r"docker run --gpus all -p (.*\\\n.*)", (ROOT / name).read_text("utf-8"))
    assert "-v qlora_demo:/data " in given and "-e HF_HOME=/data/huggingface " in given


def front_matter() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "README.md").read_text("utf-8").split("---\n")[1])
    return found


def test_the_readme_describes_a_space_in_documented_words() -> None:
    space = front_matter()
    assert set(space) <= SPACE_KEYS
    assert (space["sdk"], space["hf_oauth"]) == ("gradio", True)
    assert (ROOT / space["app_file"]).is_file()
    assert space["hf_oauth_expiration_minutes"] * 60 == SESSION_SECONDS  # a push needs the token that a session holds
    assert len(space["short_description"]) <= 60
    assert re.fullmatch(r"\d+[mh]", space["startup_duration_timeout"])


def test_the_space_s_versions_are_those_that_are_tested() -> None:
    space = front_matter()
    pinned = re.search(r"^gradio(?:\[.*\])?==(\S+)", (ROOT / "requirements.txt").read_text("utf-8"), re.M)
    assert pinned and space["sdk_version"] == pinned[1]
    assert f"python:{space['python_version']}-" in IMAGE[0].value


def test_what_a_gradio_space_installs_of_gradio_takes_the_versions_that_are_pinned() -> None:
    """A Space installs gradio[oauth,mcp] beside the requirements; where the two disagree it is not built, or what runs
    there is not what was tested."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()]
    pinned = {made.name: str(made.specifier).removeprefix("==") for made in map(Requirement, filter(None, lines))}
    wanted = [Requirement(one) for one in requires("gradio") or []]
    taken = [
        one
        for one in wanted
        if not one.marker or any(one.marker.evaluate({"extra": at}) for at in ("oauth", "mcp", ""))
    ]
    refused = [f"{one} not {pinned[one.name]}" for one in taken if not _takes(one, pinned.get(one.name))]
    assert refused == [] and {"pydantic", "mcp"} <= {one.name for one in taken}


def _takes(one: Requirement, version: str | None) -> bool:
    return version is None or one.specifier.contains(version)


def test_the_guide_sends_a_clone_to_a_space_in_the_words_that_the_hub_s_own_command_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A push would be refused: the history holds pictures."""
    (line,) = re.findall(r"^ +hf (upload .+)$", (ROOT / "docs/deploy.md").read_text("utf-8"), re.M)
    sent: dict[str, Any] = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda _, **given: SimpleNamespace(repo_id=given["repo_id"]))
    monkeypatch.setattr(HfApi, "upload_folder", lambda _, **given: sent.update(given))
    hf(line.split(), standalone_mode=False)
    assert (sent["repo_id"], sent["repo_type"], sent["folder_path"]) == ("YOU/SPACE", "space", ".")
    assert sent["path_in_repo"] == "." and not sent["allow_patterns"]
