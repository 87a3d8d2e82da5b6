"""The doctor: each check fails once, says what to do, and decides the exit code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qlora_demo.cli import main
from qlora_demo.upkeep import doctor
from qlora_demo.upkeep.doctor import Check, attempt, disk, examine, home, packages


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that answers, for who does not ask whether it does."""
    monkeypatch.setattr("qlora_demo.upkeep.doctor.hub_answers", lambda: True)


def bad(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.ok]


def test_on_a_machine_that_has_everything_all_is_well(tmp_path: Path) -> None:
    checks = list(examine({"QLORA_DEMO_HOME": str(tmp_path)}))
    assert bad(checks) == []
    names = {check.name for check in checks}
    assert {"python", "package torch", "package gradio", "home", "disk", "hub"} <= names
    assert len([name for name in names if name.startswith("package ")]) >= 18
    assert list(tmp_path.iterdir()) == []


def test_another_python_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.upkeep.doctor.sys", SimpleNamespace(version_info=(3, 9, 0)))
    (check, *_) = examine({"QLORA_DEMO_HOME": str(tmp_path)})
    assert (check.name, check.ok, check.remedy) == ("python", False, "use Python 3.11 or 3.12")


def test_a_package_that_is_missing_or_another_version_is_told(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text("# ours\npsutil==0.0.1\nno-such-package[extra]==1.0  # why\npytest\n", "utf-8")
    older, missing = packages(pins)
    assert older.name == "package psutil" and older.found.endswith(", 0.0.1 is needed")
    assert (missing.name, missing.found) == ("package no-such-package", "missing, 1.0 is needed")
    assert not older.ok and not missing.ok and "pip install -r requirements.txt" in missing.remedy


def test_a_home_that_cannot_be_made_is_told_and_ends_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checks = list(examine({"QLORA_DEMO_HOME": str(tmp_path / "file")}))
    assert bad(checks) == ["home"] and "QLORA_DEMO_HOME" in checks[-1].found


@pytest.mark.parametrize("what", ["pathlib.Path.rename", "sqlite3.connect"])
def test_a_home_that_cannot_rename_or_hold_a_database_is_told(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(what, refuse)
    check = home(tmp_path)
    assert not check.ok and "Operation not supported" in check.found and "QLORA_DEMO_HOME" in check.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 30))
    check = disk(tmp_path)
    assert (check.ok, check.found) == (False, "1.0 GiB free") and "free 2.0 GiB there" in check.remedy


def test_a_hub_that_does_not_answer_is_told_and_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.upkeep.doctor.hub_answers", lambda: False)
    *_, check = examine({"QLORA_DEMO_HOME": str(tmp_path)})
    assert (check.name, check.ok, check.needed) == ("hub", False, False) and "HF_ENDPOINT" in check.remedy


def test_whatever_is_raised_is_what_was_found() -> None:
    def look() -> str:
        raise RuntimeError("no\nkernel image")

    assert attempt("kernels", "reinstall", look) == Check(
        "kernels", False, "RuntimeError: no kernel image", "reinstall"
    )
    assert attempt("kernels", "reinstall", lambda: "fine") == Check("kernels", True, "fine")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    """The doctor without a look at models: what it finds is what is put here."""
    found = {"home": Check("home", True, "here"), "hub": Check("hub", True, "reachable", "wait", needed=False)}
    monkeypatch.setattr("qlora_demo.commands.machine.examine", lambda: list(found.values()))
    monkeypatch.setattr("qlora_demo.commands.machine._model_checks", lambda settings: [])
    return found


def test_the_command_prints_one_document_or_a_line_for_each(
    quick: dict[str, Check], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick["hub"] = Check("hub", False, "not reachable", "check the network", needed=False)
    assert main(["doctor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] and [check["name"] for check in result["checks"]] == ["home", "hub"]
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok    home: here\nwarn  hub: not reachable\n      check the network\n"


def test_the_command_fails_where_something_needed_does(
    quick: dict[str, Check], capsys: pytest.CaptureFixture[str]
) -> None:
    quick["home"] = Check("home", False, "full", "free some room")
    assert main(["doctor", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    assert main(["doctor"]) == 1
    assert "FAIL  home: full\n      free some room\n" in capsys.readouterr().out


def test_libraries_that_cannot_be_imported_are_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_demo.commands import machine
    from qlora_demo.settings import Settings

    monkeypatch.setitem(sys.modules, "qlora_demo.ml.doctor", None)
    (check,) = machine._model_checks(Settings(home))
    assert not check.ok and "pip install" in check.remedy


def test_what_is_pinned_is_read_from_the_file_that_is_installed_from() -> None:
    assert doctor.REQUIREMENTS.is_file()
    assert len(list(packages())) == doctor.REQUIREMENTS.read_text("utf-8").count("==")
