"""The log: one event a line, with its run and request, without tokens."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from qlora_demo.errors import ConfigError
from qlora_demo.system import logs


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The process's log as it was before the test."""
    root, package = logging.getLogger(), logging.getLogger("qlora_demo")
    before = (list(root.handlers), root.level, package.level)
    yield
    root.handlers[:], package.level = before[0], before[2]
    root.setLevel(before[1])
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_object_with_its_run_and_request(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({"QLORA_DEMO_LOG": "json"})
    with logs.of(request="r1"):
        with logs.of(run="20260101-000000-qlora-0000"):
            logs.event("run.started", processes=2)
        logs.event("page.opened", logging.WARNING)
    logs.event("app.idle")
    first, second, third = lines(capsys)
    assert (first.pop("time"), second.pop("time"), third.pop("time")) > ("2026", "2026", "2026")
    run = {"run": "20260101-000000-qlora-0000", "request": "r1"}
    assert first == {"level": "info", "event": "run.started", "processes": 2} | run
    assert second == {"level": "warning", "event": "page.opened", "request": "r1"}
    assert third == {"level": "info", "event": "app.idle"}


def test_line_ends_stay_inside_the_object(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({"QLORA_DEMO_LOG": "json"})
    logs.event("a\nb", said='{"x": 1}\n{"level": "error"}\u2028')
    assert [line["event"] for line in lines(capsys)] == ["a\nb"]


def test_text_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({"QLORA_DEMO_LOG": "text"})
    with logs.of(run="one"):
        logs.event("run.started", processes=2)
    assert capsys.readouterr().err[8:] == " info run.started run=one processes=2\n"


def test_what_libraries_say_is_in_it_from_warnings_on(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({})
    logging.getLogger("httpx").info("GET https://example.com")
    logging.getLogger("httpx").warning("slow: %s", 3)
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("httpx").exception("bad")
    slow, bad = lines(capsys)
    assert (slow["event"], slow["logger"], slow["message"]) == ("library", "httpx", "slow: 3")
    assert str(bad["traceback"]).endswith("ValueError: no")


def test_no_line_holds_a_token(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret-token")
    logs.set_up({"QLORA_DEMO_LOG": "json"})
    logging.getLogger("httpx").warning("Authorization: Bearer s3cret-token and hf_AbCdEfGhIjKl")
    logs.event("sync.failed", why="401 for hf_AbCdEfGhIjKl")
    said = capsys.readouterr().err
    assert "s3cret" not in said and "hf_A" not in said
    assert said.count("(token)") == 3


OAUTH = "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiI2-MzQ1.Sig_n-ature"


@pytest.mark.parametrize("said", [OAUTH, f"a\n{OAUTH}", f"token%3D{OAUTH}", f"Bearer {OAUTH}.", f"['{OAUTH}']"])
def test_nothing_of_a_token_of_who_signed_in_is_left(said: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({"QLORA_DEMO_LOG": "json"})
    logging.getLogger("authlib").warning(said)
    found = capsys.readouterr().err
    assert not [part for part in OAUTH.split(".") if part in found] and "(token)" in found


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_token_deep_in_a_fact_is_struck_out_and_figures_stay(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up({"QLORA_DEMO_LOG": form})
    facts = {"tokens": {"base": 3, OAUTH: [OAUTH, 2.5, True, None]}, "why": ValueError(OAUTH), "all": (OAUTH, {OAUTH})}
    logs.event("answer.ended", **facts)
    found = capsys.readouterr().err
    assert found.count("(token)") == 5 and "eyJ" not in found
    if form == "json":
        assert json.loads(found)["tokens"] == {"base": 3, "(token)": ["(token)", 2.5, True, None]}


def test_a_format_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^QLORA_DEMO_LOG: 'xml' is not allowed; give one of json, text"):
        logs.set_up({"QLORA_DEMO_LOG": "xml"})


def test_a_command_that_sets_up_no_log_prints_none() -> None:
    script = "import logging; from qlora_demo.system import logs; logs.event('run.failed', logging.ERROR)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
