"""Where things live, and what third-party libraries are told before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_demo.catalog import SMOLLM2, bundled_path, is_fetched
from qlora_demo.errors import ConfigError
from qlora_demo.settings import Settings, quiet_libraries


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Space's persistent disk; the person's own data directory is beside it."""
    (tmp_path / "data").mkdir()
    monkeypatch.setattr("qlora_demo.settings._SPACE_DISK", str(tmp_path / "data"))
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "user" / name)
    return tmp_path / "data"


def test_the_named_home_is_made_and_holds_models_and_runs(tmp_path: Path) -> None:
    settings = Settings.from_environment({"QLORA_DEMO_HOME": str(tmp_path / "a" / "b")})
    assert settings == Settings(tmp_path / "a" / "b")
    assert (settings.models, settings.runs) == (tmp_path / "a" / "b" / "models", tmp_path / "a" / "b" / "runs")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment({"QLORA_DEMO_HOME": "here"}).home == tmp_path / "here"


def test_a_tilde_is_the_person_s_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.from_environment({"QLORA_DEMO_HOME": "~/demo"}).home == tmp_path / "demo"


def test_the_process_s_own_environment_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_DEMO_HOME", str(tmp_path / "home"))
    assert Settings.from_environment().home == tmp_path / "home"


@pytest.mark.parametrize("below", ["", "/folder", "/folder/deeper"])
def test_a_home_that_cannot_be_written_is_refused_with_its_name(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=f"^QLORA_DEMO_HOME: {tmp_path}/file{below} cannot be written .*; name another"
    ):
        Settings.from_environment({"QLORA_DEMO_HOME": f"{tmp_path}/file{below}"})


@pytest.mark.parametrize("home", [{}, {"QLORA_DEMO_HOME": ""}])
def test_without_a_named_home_it_is_the_person_s_data_directory(disk: Path, home: dict[str, str]) -> None:
    assert Settings.from_environment(home) == Settings(disk.parent / "user" / "qlora_demo")


def test_on_a_space_with_a_disk_the_home_is_on_the_disk(disk: Path) -> None:
    settings = Settings.from_environment({"SPACE_ID": "me/demo"})
    assert settings == Settings(disk / "qlora_demo", space="me/demo", disk=disk)


def test_a_container_may_name_its_disk(disk: Path) -> None:
    assert Settings.from_environment({"QLORA_DEMO_DISK": str(disk)}) == Settings(disk / "qlora_demo", disk=disk)


def test_on_a_space_without_a_disk_the_home_is_the_data_directory(disk: Path) -> None:
    disk.rmdir()
    assert Settings.from_environment({"SPACE_ID": "me/demo"}).home == disk.parent / "user" / "qlora_demo"
    assert not disk.exists()


def test_a_disk_that_cannot_be_locked_on_is_not_used(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> None:
        if str(disk) in str(Path(f"/dev/fd/{fd}").resolve()):
            raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    assert Settings.from_environment({"SPACE_ID": "me/demo"}).home == disk.parent / "user" / "qlora_demo"


def test_a_named_home_goes_before_the_disk_of_a_space(disk: Path, tmp_path: Path) -> None:
    environ = {"SPACE_ID": "me/demo", "QLORA_DEMO_HOME": str(tmp_path / "mine")}
    assert Settings.from_environment(environ).home == tmp_path / "mine"


def test_what_is_asked_of_the_background_is_read(tmp_path: Path) -> None:
    environ = {
        "QLORA_DEMO_HOME": str(tmp_path),
        "QLORA_DEMO_PRELOAD": " ada/one, ,ada/two",
        "QLORA_DEMO_SYNC_REPO": " ada/runs ",
        "QLORA_DEMO_PAUSE_MINUTES": " 30 ",
    }
    settings = Settings.from_environment(environ)
    assert (settings.preload, settings.sync_repo, settings.pause_minutes) == (("ada/one", "ada/two"), "ada/runs", 30)


def test_minutes_that_are_no_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^QLORA_DEMO_PAUSE_MINUTES: 'soon' is not allowed; give whole minutes"):
        Settings.from_environment({"QLORA_DEMO_HOME": str(tmp_path), "QLORA_DEMO_PAUSE_MINUTES": "soon"})


@pytest.mark.parametrize("there", [True, False])
def test_a_bundled_model_that_came_with_the_image_is_used_where_it_is(tmp_path: Path, there: bool) -> None:
    (tmp_path / "image" / SMOLLM2.name).mkdir(parents=True)
    settings = Settings(tmp_path / "home", bundled=tmp_path / ("image" if there else "nowhere"))
    assert is_fetched(settings, SMOLLM2.name) == there
    assert bundled_path(settings, SMOLLM2.name).parent == (tmp_path / "image" if there else settings.models)


def test_libraries_are_told_to_send_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    quiet_libraries()
    assert (os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["GRADIO_ANALYTICS_ENABLED"]) == ("1", "False")
    script = "from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_what_a_person_has_set_for_the_libraries_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    quiet_libraries()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
