"""The real page in Chromium: led by its guide from an empty home to a report, with reloads and a restart; what it looks
like then in every tab; and one mistake of each kind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Settings
from tests.browser.conftest import Server
from tests.browser.readable import steady, wrong_with

pytestmark = [pytest.mark.browser, pytest.mark.bundled]
MINUTE = 60_000
STEPS = 8
"""Enough to learn the form of an answer."""
_LAID_OUT = "#ask {position: static !important}"
"""A whole page is taller than what its prompt sticks to."""
ENDED = re.compile("ended by itself|cut off|stopped by hand")


def set_number(page: Page, name: str, value: str) -> None:
    page.locator(f"#TrainConfig-{name} input").first.fill(value)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def screenshot(page: Page, name: str) -> None:
    """Keep a picture where somebody asked for it (`make screenshot`)."""
    if folder := os.environ.get("QLORA_DEMO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True, style=_LAID_OUT)


@pytest.mark.timeout(1200)
def test_a_newcomer_is_led_from_nothing_to_a_report(page: Page, server: Server, browser: Browser) -> None:
    data_and_base_model(page)
    next_is(page, "Train")
    tab(page, "Train")
    set_number(page, "max_steps", str(STEPS))
    page.click("#guide-train")
    trains_through_reload_and_restart(page, server, browser)
    screenshot(page, "train")

    next_is(page, "After")
    page.click("#guide-after")
    three_columns_answer(page)
    retry_multi_turn_stop_and_clear(page)
    edit_again_and_differences(page)
    blind_vote(page)
    next_is(page, "Measure")
    evaluate_fidelity_and_report(page)
    expect(page.locator("#guide")).to_be_hidden()
    for theme, width, height in (("light", 1280, 900), ("dark", 390, 844)):
        assert wrong_with(browser, f"{server.url}?__theme={theme}", width, height) == []
    tab(page, "Chat")
    page.click("#free")
    expect(page.locator("#status")).to_contain_text("device is free", timeout=MINUTE)


def next_is(page: Page, stage: str) -> None:
    """What the guide offers, and that it offers nothing else."""
    expect(page.locator("#guide [aria-current=step]")).to_have_text(stage, timeout=MINUTE)
    expect(page.locator("#guide button:visible")).to_have_count(1)


def data_and_base_model(page: Page) -> None:
    expect(page.locator("#progress")).to_contain_text("No run yet")
    next_is(page, "Data")
    page.click("#guide-data")
    expect(page.locator("#preflight")).to_contain_text("No problems found", timeout=MINUTE)
    next_is(page, "Before")
    page.click("#guide-before")
    expect(page.locator("#send")).to_be_focused()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    expect(page.locator("#column-1")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.locator("#foot-0")).to_contain_text(ENDED, timeout=MINUTE)
    expect(page.locator("#foot-0")).to_contain_text("bf16 weights, adapter none")


def trains_through_reload_and_restart(page: Page, server: Server, browser: Browser) -> None:
    progress = page.locator("#progress")
    expect(progress).to_contain_text("running", timeout=MINUTE)
    expect(page.locator("#guide")).to_contain_text("The run is running")
    with steady(page):
        expect(progress).to_contain_text(re.compile(rf"step [1-9]\d* of {STEPS}"), timeout=MINUTE)

    page.reload()
    expect(progress).to_contain_text(re.compile(rf"running · step \d+ of {STEPS} · about .* left"), timeout=MINUTE)
    second = browser.new_page()
    second.goto(server.url)
    expect(second.locator("#progress")).to_contain_text(f"of {STEPS}", timeout=MINUTE)
    second.close()

    server.kill()
    server.start()
    page.goto(server.url)
    expect(progress).to_contain_text(re.compile(rf"(running|finished) · step \d+ of {STEPS}"), timeout=MINUTE)
    with steady(page):
        expect(progress).to_contain_text(f"finished · step {STEPS} of {STEPS}", timeout=5 * MINUTE)
    expect(page.locator("#progress")).to_contain_text("Gradient checkpointing: off")
    for label in ("training", "held-out", "loss (nats per token)", "learning rate"):
        expect(page.get_by_text(label, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Configuration and versions").click()
    expect(page.locator("#about")).to_contain_text(re.compile(f"max_steps.*{STEPS}.*transformers", re.DOTALL))
    page.get_by_role("button", name="Configuration and versions").click()


def three_columns_answer(page: Page) -> None:
    expect(page.locator("#placement")).to_contain_text(re.compile("loads base, adapter, merged"))
    expect(page.locator("#send")).to_be_focused()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    with steady(page):
        page.keyboard.press("Enter")
        all_answered(page, 2 * MINUTE)
    for place in range(3):
        expect(page.locator(f"#foot-{place}")).to_contain_text(
            re.compile(r"time to first token.*tokens/s.*total", re.DOTALL)
        )
    expect(page.locator("#foot-0")).to_contain_text("bf16 weights, adapter none")
    expect(page.locator("#foot-1")).to_contain_text("nf4 weights, adapter on")
    expect(page.locator("#foot-2")).to_contain_text("bf16 weights, adapter merged")
    expect(page.locator("#chat-1")).to_contain_text('"category"')
    expect(page.locator("#latency")).to_contain_text("median time per output token")
    screenshot(page, "chat")
    answers_are_short_from_here(page)


def answers_are_short_from_here(page: Page) -> None:
    """Long enough to be told apart; whole answers, and what the model says without end, are seen by then."""
    sampling = page.get_by_role("button", name="System prompt and sampling")
    sampling.click()
    page.locator("#GenerationSettings-max_new_tokens input").first.fill("20")
    sampling.click()


def ask_example(page: Page) -> None:
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.click("#send")


def all_answered(page: Page, timeout: int = MINUTE, columns: int = 3) -> None:
    for place in range(columns):
        expect(page.locator(f"#foot-{place}")).to_contain_text(ENDED, timeout=timeout)


def retry_multi_turn_stop_and_clear(page: Page) -> None:
    page.click("#clear")
    page.click("#retry")
    expect(page.get_by_text("there is nothing to retry")).to_be_visible()
    ask_example(page)
    all_answered(page)
    first = page.locator("#chat-1").inner_text()
    page.click("#retry")
    expect(page.locator("#foot-0")).to_contain_text("…")
    all_answered(page)
    assert page.locator("#chat-1").inner_text() == first

    page.fill("#prompt textarea", "Tell me a very long story about a printer.")
    page.press("#prompt textarea", "Enter")
    expect(page.locator("#foot-0")).to_contain_text(re.compile(r"answer\s*[3-9] tokens"), timeout=MINUTE)
    expect(page.locator("#chat-0").get_by_role("button", name="Edit").first).to_be_disabled()
    page.click("#stop-answer")
    expect(page.locator("#foot-0")).to_contain_text(re.compile("stopped by hand|ended by itself"), timeout=MINUTE)
    expect(page.locator("#chat-0")).to_contain_text("Tell me a very long story")

    page.fill("#prompt textarea", "Tell me another very long story about a scanner.")
    page.click("#send")
    expect(page.locator("#chat-0")).to_contain_text("scanner", timeout=MINUTE)
    expect(page.locator("#foot-0")).to_contain_text(re.compile(r"answer\s*[3-9] tokens"), timeout=MINUTE)
    page.click("#clear")
    expect(page.locator("#chat-0")).not_to_contain_text("scanner")
    expect(page.locator("#status")).to_contain_text("chat of run")
    expect(page.locator("#foot-0")).not_to_contain_text("tokens")
    expect(page.locator("#chat-0")).not_to_contain_text("scanner")


def edit_again_and_differences(page: Page) -> None:
    ask_example(page)
    all_answered(page)
    expect(page.locator("#differences")).to_contain_text(
        re.compile("same answer, token for token|first differing token")
    )
    other, answer = page.locator("#chat-0").inner_text(), page.locator("#chat-1").inner_text()
    page.click("#again-1")
    expect(page.locator("#foot-1")).to_contain_text("…")
    expect(page.locator("#foot-1")).to_contain_text(ENDED, timeout=MINUTE)
    assert (page.locator("#chat-0").inner_text(), page.locator("#chat-1").inner_text()) == (other, answer)

    page.locator("#chat-1").get_by_role("button", name="Edit").first.click()
    page.locator("#chat-1 textarea").fill("The Corvid Cast is on fire.")
    page.locator("#chat-1").get_by_role("button", name=re.compile("Submit|Save|Done")).first.click()
    for place in range(3):
        expect(page.locator(f"#chat-{place}")).to_contain_text("The Corvid Cast is on fire.")
    all_answered(page)
    page.click("#keep")
    expect(page.get_by_text(re.compile("holds 1 conversation now"))).to_be_visible()


def blind_vote(page: Page) -> None:
    page.click("#clear")
    page.locator("#blind input").check()
    ask_example(page)
    for place, letter in enumerate("ABC"):
        expect(page.locator(f"#head-{place}")).to_contain_text(
            re.compile(rf"{letter}\s*hidden until the vote"), timeout=MINUTE
        )
        expect(page.locator(f"#foot-{place}")).to_have_text("answered", timeout=MINUTE)
    expect(page.locator("#differences")).to_be_empty()
    expect(page.locator("#latency")).to_be_empty()
    page.click("#vote-tie")
    expect(page.locator("#vote-tie")).to_be_hidden()
    titles = [page.locator(f"#head-{place} b").inner_text() for place in range(3)]
    assert sorted(titles) == ["Base", "Base + adapter", "Merged"]
    page.locator("#blind input").uncheck()


def evaluate_fidelity_and_report(page: Page) -> None:
    tab(page, "Evaluate")
    expect(page.locator("#votes")).to_contain_text("1 vote: 1 tie")
    set_rows(page, "1")
    page.click("#guide-measure")
    expect(page.locator("#guide")).to_contain_text("At work: evaluation", timeout=MINUTE)
    expect(page.locator("#job")).to_contain_text("ended", timeout=2 * MINUTE)
    expect(page.locator("#evaluation")).to_contain_text(re.compile("test.*adapter.*hard", re.DOTALL))
    expect(page.locator("#evaluation svg")).to_be_visible()
    expect(page.locator("#rows")).to_contain_text('"category"')
    page.get_by_label("most changed").check()
    expect(page.locator("#rows")).to_contain_text("rows whose reference's loss changed most from base to merged")
    page.click("#fidelity-start")
    expect(page.locator("#job")).to_contain_text("fidelity", timeout=MINUTE)
    expect(page.locator("#job")).to_contain_text("ended", timeout=3 * MINUTE)
    expect(page.locator("#fidelity")).to_contain_text("Ship the merge onto the dequantized base", timeout=MINUTE)
    screenshot(page, "evaluate")

    next_is(page, "Report")
    page.click("#guide-report")
    link = page.locator("#report-files a[download$='.html'], #report-files a[href$='.html']").first
    expect(link).to_be_visible(timeout=MINUTE)
    with page.expect_download() as download:
        link.click()
    text = download.value.path().read_text("utf-8")
    assert "Ship the merge onto the dequantized base" in text
    assert "The Corvid Cast is on fire." in text and "Before and after" in text and "<script" not in text


def set_rows(page: Page, value: str) -> None:
    page.locator("#judge-rows input").fill(value)


def test_mistakes_are_told_in_one_line(page: Page) -> None:
    toast = page.locator(".toast-wrap, .toast-body").first
    set_number(page, "r", "0")
    page.click("#start")
    expect(toast).to_contain_text("r: 0 is not allowed; give a whole number >= 1 and <= 256")
    expect(page.locator("#progress")).to_contain_text("No run yet")

    tab(page, "Chat")
    expect(page.locator("#placement")).to_contain_text("loads base:")
    page.click("#send")
    expect(page.get_by_text("prompt: it is empty")).to_be_visible()
    expect(page.locator("#chat-0")).not_to_contain_text("Error")
    tab(page, "Evaluate")
    page.click("#evaluate")
    expect(page.get_by_text("run: none is finished yet")).to_be_visible()


def test_a_model_that_does_not_exist_is_told_and_leaves_no_run(page: Page) -> None:
    page.locator("#TrainConfig-model input").fill("./no-such-folder")
    page.keyboard.press("Enter")
    expect(page.locator("#plan")).to_contain_text("'./no-such-folder' is no folder here", timeout=MINUTE)
    page.click("#start")
    expect(page.locator(".toast-body").first).to_contain_text("'./no-such-folder' is no folder here", timeout=MINUTE)
    expect(page.locator("#progress")).to_contain_text("No run yet", timeout=MINUTE)


def test_a_damaged_adapter_is_told_the_prompt_given_back_and_the_app_goes_on(page: Page, server: Server) -> None:
    services = build_services(Settings.from_environment())
    run = services.runs.create(TrainConfig())
    run.adapter.mkdir()
    write_state(run.path, RunState(status="finished"))
    tab(page, "Chat")
    expect(page.locator("#chat-run input")).to_have_value(re.compile(run.id))
    expect(page.locator("#placement")).to_contain_text("GiB")
    prompt, on_their_way = page.locator("#prompt textarea"), list[Route]()
    prompt.fill("hello")
    page.route("**/queue/join*", lambda route: on_their_way.append(route))
    page.click("#send")
    prompt.press("End")
    prompt.press_sequentially(", and what was typed meanwhile")
    while on_their_way:
        on_their_way.pop(0).continue_()
    page.unroute("**/queue/join*")
    expect(page.get_by_text(re.compile("is missing; train again|tokenizer"))).to_be_visible(timeout=MINUTE)
    expect(prompt).to_have_value("hello\n, and what was typed meanwhile")
    expect(page.locator("#status")).to_contain_text("device is free", timeout=MINUTE)


def test_html_in_a_run_is_shown_as_text(page: Page, server: Server) -> None:
    services = build_services(Settings.from_environment())
    run = services.runs.create(TrainConfig())
    write_state(run.path, RunState(status="failed", error="<img src=x onerror=alert(1)>"))
    expect(page.locator("#progress")).to_contain_text("<img src=x onerror=alert(1)>", timeout=MINUTE)
    assert page.locator("#progress img").count() == 0
