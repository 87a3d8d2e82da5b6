"""Where things live, and what third-party libraries are told before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from uvicorn.middleware.proxy_headers import _TrustedHosts

from qlora_demo.catalog import SMOLLM2, bundled_path, is_fetched
from qlora_demo.errors import ConfigError
from qlora_demo.settings import Limits, Settings, trust_proxies, variable


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
        if os.fstat(fd).st_ino in {path.stat().st_ino for path in disk.rglob(".write-*")}:
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


_TOLD = """
import qlora_demo.sources, gradio.analytics
from huggingface_hub import constants
print(constants.HF_HUB_DISABLE_TELEMETRY, gradio.analytics.analytics_enabled())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("chosen", "told"), [({}, "True False"), ({"HF_HUB_DISABLE_TELEMETRY": "0"}, "False False")])
def test_libraries_are_told_to_send_nothing_before_they_are_imported(chosen: dict[str, str], told: str) -> None:
    ours = ("HF_HUB_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED")
    environ = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-c", _TOLD]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ | chosen)
    assert done.stdout.strip() == told


def test_roles_are_read_from_the_environment(tmp_path: Path) -> None:
    environ = {"QLORA_DEMO_HOME": str(tmp_path), "QLORA_DEMO_OPERATORS": " ada, ,Grace ", "GRADIO_SHARE": "True"}
    settings = Settings.from_environment(environ | {"QLORA_DEMO_PASSWORD": "correct horse"})
    assert (settings.operators, settings.password, settings.shared) == (("ada", "Grace"), "correct horse", True)
    assert "correct horse" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "host"),
    [
        ({}, "127.0.0.1"),
        ({"GRADIO_SERVER_NAME": ""}, "127.0.0.1"),
        ({"GRADIO_SERVER_NAME": "0.0.0.0"}, "0.0.0.0"),
    ],
)
def test_the_app_answers_on_this_machine_alone_unless_it_is_told_otherwise(
    tmp_path: Path, given: dict[str, str], host: str
) -> None:
    assert Settings.from_environment(given | {"QLORA_DEMO_HOME": str(tmp_path)}).host == host


def test_a_short_password_is_refused_without_being_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^QLORA_DEMO_PASSWORD: has 7 characters; give at least 8$"):
        Settings.from_environment({"QLORA_DEMO_HOME": str(tmp_path), "QLORA_DEMO_PASSWORD": "secret7"})


OAUTH = dict.fromkeys(("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"), "x")


@pytest.mark.parametrize(
    ("environ", "can"),
    [
        (OAUTH | {"SPACE_ID": "me/demo", "SYSTEM": "spaces"}, True),
        (OAUTH | {"SPACE_ID": "me/demo"}, False),
        (OAUTH | {"SYSTEM": "spaces"}, False),
        (OAUTH | {"SPACE_ID": "me/demo", "SYSTEM": "spaces", "OAUTH_CLIENT_SECRET": ""}, False),
    ],
)
def test_hub_sign_in_is_only_where_gradio_does_not_pretend(tmp_path: Path, environ: dict[str, str], can: bool) -> None:
    assert Settings.from_environment(environ | {"QLORA_DEMO_HOME": str(tmp_path)}).hub_sign_in is can


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "²", "1e3"])
def test_a_limit_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^QLORA_DEMO_QUEUE_LENGTH: .* is not allowed; give a whole number >= 1$"):
        Limits.from_environment({"QLORA_DEMO_QUEUE_LENGTH": text})


def test_each_limit_has_its_variable_and_the_readme_lists_it_with_its_default() -> None:
    given = Limits.from_environment({variable(limit.name): "7" for limit in fields(Limits)})
    assert {getattr(given, limit.name) for limit in fields(Limits)} == {7}
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    for limit in fields(Limits):
        assert f"| `{variable(limit.name)}` | {limit.default} | {limit.metadata['meaning']} |" in readme


def test_a_space_s_own_proxies_are_trusted_and_nobody_else_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "")
    monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    trust_proxies(Settings(tmp_path))
    assert "FORWARDED_ALLOW_IPS" not in os.environ
    trust_proxies(Settings(tmp_path, space="me/demo"))
    trusted = _TrustedHosts(os.environ["FORWARDED_ALLOW_IPS"])
    for forged in ("", "1.2.3.4, ", "10.1.1.1, "):
        assert trusted.get_trusted_client_address(f"{forged}8.8.8.8, 10.0.0.7")[0] == "8.8.8.8"
