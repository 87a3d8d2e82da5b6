"""The command line's edges: an address that the app cannot answer on, an output that takes no result."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from qlora_demo.cli import main
from qlora_demo.errors import ConfigError
from qlora_demo.services import Services
from qlora_demo.ui import page

LAUNCH = page.launch
RANGE = "is not allowed; give a whole number >= 1 and <= 65535"


@pytest.fixture(autouse=True)
def nothing_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    monkeypatch.setattr("qlora_demo.ui.page.launch", lambda *_: pytest.fail("it was started"))


def refused(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that ends `serve`."""
    assert main(["serve", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "99999"], f"port: '99999' {RANGE}"),
        (["--port", "0"], f"port: '0' {RANGE}"),
        (["--host", "nowhere.invalid"], "host: nowhere.invalid: cannot answer there ("),
        (["--host", "a..b"], "host: a..b: cannot answer there ("),
        (["--host", "::1"], "host: ::1 is not allowed; write an address of IPv6 as [::1]"),
        (["--host", "192.0.2.1"], "host: 192.0.2.1: cannot answer there ("),
    ],
)
def test_an_address_that_nothing_can_answer_on_is_one_line(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert refused(capsys, *options).startswith(f"error: {said}")


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = refused(capsys, "--port", str(port))
    assert told.startswith(f"error: host: 127.0.0.1, port {port}: cannot answer there (")


def test_a_machine_without_a_free_port_is_one_line(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: object) -> None:
        raise OSError("Cannot find empty port in range: 7860-7959.")

    monkeypatch.setattr("qlora_demo.ui.page.open_page", taken)
    monkeypatch.setattr("qlora_demo.ui.page.set_option", lambda *_: None)
    with pytest.raises(ConfigError, match=r"port: cannot answer on any \(Cannot find empty port in range: 7860-7959"):
        LAUNCH(services, None, None)


def test_a_variable_that_is_no_port_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_SERVER_PORT", "abc")
    assert refused(capsys) == f"error: GRADIO_SERVER_PORT: 'abc' {RANGE}"


@pytest.mark.parametrize(
    ("output", "code", "told"), [(">/dev/full", 1, ["error: stdout: the result cannot be written"]), (">&-", 0, [])]
)
def test_a_result_that_cannot_be_written_is_one_line(home: Path, output: str, code: int, told: list[str]) -> None:
    command = f"{sys.executable} -m qlora_demo runs list --json {output}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert [line[: len(told[0])] for line in done.stderr.splitlines()] == told
