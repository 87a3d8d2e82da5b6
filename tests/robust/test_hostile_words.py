"""Words and requests made to run, to read or to flood: shown as words, or refused, on the page and by raw HTTP."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import gradio as gr
import httpx
import pytest
from playwright.sync_api import Browser, expect

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.engine import OnDemand
from qlora_demo.errors import ConfigError, DataError
from qlora_demo.jobs import save_result
from qlora_demo.ml.generate import encode
from qlora_demo.ml.load import load_tokenizer
from qlora_demo.records import Answer, AnswerRequest, Choice, Progress, RunState
from qlora_demo.results.answers import kept
from qlora_demo.results.history import write_note
from qlora_demo.results.report import save
from qlora_demo.results.reporting import gather, keep_conversation
from qlora_demo.results.votes import NewComparison
from qlora_demo.runs import write_state
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from qlora_demo.ui.talk import Talk, conversation, with_prompt
from tests.calls import Client, opened
from tests.ml.test_variants import finished_run

SCRIPT = "</pre><script>window.ran=1</script><img src=x onerror=window.ran=1><svg/onload=window.ran=1>'\"]]>{{7*7}}"


@pytest.fixture
def told_app(home: Path) -> SimpleNamespace:
    """An app, everyone its operator, with one run whose every word is hostile."""
    services = build_services(Settings(home))
    run = services.runs.create(TrainConfig(model=SCRIPT[:400], dataset=SCRIPT[:400]))
    run.adapter.mkdir()
    (run.path / "train.log").write_text(SCRIPT, "utf-8")
    choice = Choice(SCRIPT, SCRIPT, SCRIPT)
    write_state(run.path, RunState("failed", error=SCRIPT, choices=(choice,), started_at=1.0, ended_at=2.0))
    (run.path / "heldout").mkdir()
    row = [
        {"role": "system", "content": SCRIPT},
        {"role": "user", "content": SCRIPT},
        {"role": "assistant", "content": "a"},
    ]
    (run.path / "heldout" / "test.jsonl").write_text(json.dumps({"messages": row}) + "\n", "utf-8")
    write_note(run, SCRIPT, SCRIPT)
    answer = Answer("base", text=SCRIPT, error="")
    keep_conversation(run, SCRIPT, SCRIPT, [answer], {})
    rows = {"prompt": SCRIPT, "answers": {"base": kept(answer), "adapter": kept(Answer("adapter", text="x" + SCRIPT))}}
    save_result(run, "prompts", {"columns": ["base", "adapter"], "settings": {}, "prompts": [rows]})
    new = NewComparison(run.id, SCRIPT, SCRIPT, {}, ("base", SCRIPT), {"base": kept(answer), SCRIPT: kept(answer)})
    services.votes.vote(services.votes.add(new), SCRIPT)
    report = save(gather(services.runs, services.votes, run), run.path / "report")["html"]
    page = opened(services)
    return SimpleNamespace(services=services, run=run.id, url=str(page.local_url), page=page, report=report)


@pytest.mark.browser
def test_no_script_runs_on_the_page_or_in_the_report(told_app: SimpleNamespace, browser: Browser) -> None:
    page = browser.new_page()
    dialogs: list[Any] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog))
    page.goto(told_app.url)
    expect(page.locator("#progress")).to_contain_text("<script>window.ran=1</script>")
    expect(page.locator("#runs")).to_contain_text("<script>window.ran=1</script>")
    for name in ("Chat", "Evaluate", "Explain", "Train"):
        page.get_by_role("tab", name=name, exact=True).click()
        page.wait_for_timeout(700)
    page.get_by_role("tab", name="Evaluate", exact=True).click()
    expect(page.locator("#votes")).to_contain_text("window.ran=1")
    page.get_by_role("tab", name="Train", exact=True).click()
    page.locator("#TrainConfig-target_modules textarea, #TrainConfig-target_modules input").first.fill(SCRIPT)
    page.click("#start")
    expect(page.get_by_test_id("toast-text").last).to_contain_text(
        "</pre><script>window.ran=1</script><img src=x onerror="
    )
    assert page.locator("img[src=x], svg[onload], main script").count() == 0
    assert page.evaluate("window.ran") is None and dialogs == []
    page.goto(told_app.report.as_uri())
    expect(page.locator("body")).to_contain_text("<script>window.ran=1</script>")
    assert page.evaluate("window.ran") is None and dialogs == []
    assert page.locator("script, img, iframe").count() == 0
    page.close()


class Hostile:
    """An engine whose every answer is made to run, in two steps: the first ends inside a tag."""

    def resident(self) -> tuple[Any, ...]:
        return ()

    def plan(self, columns: Any) -> Any:
        raise ConfigError("columns", SCRIPT)

    def release(self) -> None:
        """Hold nothing."""

    def load(self, columns: Any, halt: Halt) -> Iterator[Progress]:
        yield Progress(SCRIPT, 0.5)

    def answer(self, request: AnswerRequest, halt: Halt) -> Iterator[tuple[Answer, ...]]:
        for text in (SCRIPT[:40], SCRIPT):
            time.sleep(1)
            yield tuple(self._said(one.name, text) for one in request.columns)
        yield tuple(replace(self._said(one.name, SCRIPT), finish="stop") for one in request.columns)

    def _said(self, name: str, text: str) -> Answer:
        return Answer(name, f"{name} {text}\n**b**", (len(name),), decode=SCRIPT)


@pytest.mark.browser
def test_no_script_of_an_answer_runs_while_it_grows_or_beside_another(
    told_app: SimpleNamespace, browser: Browser
) -> None:
    made: Any = Hostile
    shown = opened(replace(told_app.services, engine=OnDemand(made)))
    page = browser.new_context(permissions=["clipboard-read", "clipboard-write"]).new_page()
    page.goto(str(shown.local_url))
    page.get_by_role("tab", name="Chat", exact=True).click()
    expect(page.locator("#examples")).to_contain_text("window.ran=1")
    page.locator("#prompt textarea").fill(SCRIPT)
    page.click("#send")
    for text in (SCRIPT[:40], SCRIPT):
        for at, name in enumerate(("base", "adapter", "merged")):
            expect(page.locator(f"#chat-{at}")).to_contain_text(f"{name} {text}")
    expect(page.locator("#differences")).to_contain_text("</pre><script>window.ran=1</script><img src=x onerror=")
    expect(page.locator("#placement")).to_contain_text("window.ran=1")
    for place in ("#chat-0", "#chat-1", "#chat-2", "#differences", "#placement", "#examples"):
        assert page.locator(f"{place} :is(script, img[src=x], svg[onload], iframe)").count() == 0, place
    expect(page.locator("#chat-0")).to_contain_text("**b**")
    page.locator("#chat-1").get_by_label("Copy message").last.click()
    assert page.evaluate("navigator.clipboard.readText()") == f"adapter {SCRIPT}\n**b**"
    page.get_by_role("button", name="Add to report").click()
    expect(page.get_by_text("conversations now")).to_be_visible()
    page.locator("#chat-1").get_by_role("button", name="Edit").first.click()
    box = page.locator("#chat-1 textarea")
    box.fill(f"{box.input_value()} again")
    page.locator("#chat-1").get_by_role("button", name="Submit").first.click()
    expect(page.locator("#chat-0")).to_contain_text(f"{SCRIPT} again")
    assert page.evaluate("window.ran") is None
    page.context.close()


@pytest.fixture
def client(told_app: SimpleNamespace) -> Iterator[Client]:
    with Client(told_app.url) as made:
        yield made


FILES = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2fetc/passwd",
    "file:///etc/passwd",
    "//etc/passwd",
    "app.py",
)


def test_the_app_gives_no_file_away_and_fetches_none(told_app: SimpleNamespace, client: Client) -> None:
    state = told_app.services.runs.path(told_app.run) / "state.json"
    for name in (*FILES, str(state), quote(str(state), safe=""), "http://127.0.0.1:9/x"):
        for route in ("/gradio_api/file=", "/gradio_api/file/", "/file=", "/static/", "/assets/", "/"):
            answer = client.http.get(f"{route}{name}")
            assert answer.status_code >= 400 or ("root:" not in answer.text and '"status"' not in answer.text), (
                route,
                name,
            )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0)
        port = listener.getsockname()[1]
        handlers = told_app.page.fns.values()
        uploads = [one for one in handlers if one.inputs and isinstance(one.inputs[0], gr.UploadButton | gr.File)]
        assert uploads
        for path in ("/etc/passwd", str(state), f"http://127.0.0.1:{port}/x", "file:///etc/passwd"):
            for value in ({"path": path}, {"url": path}, {"path": path, "meta": {"_type": "gradio.FileData"}}):
                for handler in uploads:
                    answer = client.join(handler._id, [value])
                    ended = list(client.results()) if answer.status_code == 200 else []
                    assert not any(one.get("success") for one in ended), (value, ended)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not list(told_app.services.settings.uploads.glob("*"))


def test_ten_megabytes_of_head_or_of_form_are_refused_and_the_app_goes_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    services = build_services(Settings(home, password="correct horse"))
    url = str(opened(services).local_url)
    with pytest.raises(httpx.HTTPError), httpx.Client(base_url=url) as client:
        client.get("/", headers={"x": "a" * 10_000_000}).raise_for_status()
    body = {"fn_index": 0, "data": ["a" * 10_000_000], "session_hash": "x"}
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/gradio_api/queue/join", json=body).status_code == 413
        assert client.post("/sign-in", data={"password": "a" * 10_000_000}).status_code == 413
        assert client.post("/gradio_api/queue/join", content=b"[" * 50_000).status_code == 400
        assert client.get("/healthz").status_code == 200


SPECIAL = (
    "<|im_end|>",
    "<|im_start|>",
    "<|im_end|>\n<|im_start|>assistant\n" * 3,
    "<|pad|>" * 5,
    "\x00\x1b[2J\u202e",
    "\ufffd",
)


def test_prompts_of_special_tokens_and_signs_alone_are_answered(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "qlora")
    columns = parse_all(["adapter"], run.id)
    for text in SPECIAL:
        talk = with_prompt(Talk(), text, Talk(run.id, columns=columns))
        turns = {"adapter": conversation(talk, "adapter")}
        *_, [answer] = services.engine().answer(
            AnswerRequest(columns, turns, GenerationSettings(max_new_tokens=3)), Halt()
        )
        assert answer.finish and not answer.error, text


def test_half_a_character_is_no_prompt(tiny_model: Path) -> None:
    fresh = Talk("run", columns=parse_all(["adapter"], "run"))
    with pytest.raises(DataError, match="prompt: it holds half a character"):
        with_prompt(Talk(), "a\ud800", fresh)
    with pytest.raises(ConfigError, match="prompt: the model's chat template does not take this conversation"):
        encode(load_tokenizer(str(tiny_model)), [[{"role": "user", "content": "a\ud800"}]])
