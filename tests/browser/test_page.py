"""The real page in Chromium: train, reload, restart, chat in three columns, and one mistake of each kind."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Settings
from tests.browser.conftest import Server

pytestmark = [pytest.mark.browser, pytest.mark.bundled]
MINUTE = 60_000


def set_number(page: Page, name: str, value: str) -> None:
    page.locator(f"#TrainConfig-{name} input").first.fill(value)


def tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def screenshot(page: Page, name: str) -> None:
    """Keep a picture where somebody asked for it (`make screenshot`)."""
    if folder := os.environ.get("QLORA_DEMO_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_train_reload_restart_and_chat(page: Page, server: Server, browser: Browser) -> None:
    progress = page.locator("#progress")
    expect(progress).to_contain_text("No run yet")
    set_number(page, "max_steps", "30")
    page.click("#start")
    expect(progress).to_contain_text("running", timeout=MINUTE)
    expect(progress).to_contain_text(re.compile(r"step [1-9]\d* of 30"), timeout=MINUTE)

    page.reload()
    expect(progress).to_contain_text(re.compile(r"running · step \d+ of 30 · about .* left"), timeout=MINUTE)
    second = browser.new_page()
    second.goto(server.url)
    expect(second.locator("#progress")).to_contain_text("of 30", timeout=MINUTE)
    second.close()

    server.kill()
    server.start()
    page.goto(server.url)
    expect(progress).to_contain_text(re.compile(r"(running|finished) · step \d+ of 30"), timeout=MINUTE)
    expect(progress).to_contain_text("finished · step 30 of 30", timeout=3 * MINUTE)
    expect(page.locator("#progress")).to_contain_text("Gradient checkpointing: off")
    for label in ("training", "held-out", "loss (nats per token)", "learning rate"):
        expect(page.get_by_text(label, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Configuration and versions").click()
    expect(page.locator("#about")).to_contain_text(re.compile("max_steps.*30.*transformers", re.DOTALL))
    page.get_by_role("button", name="Configuration and versions").click()
    screenshot(page, "train")

    tab(page, "Chat")
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.click("#send")
    for name in ("base", "adapter", "merged"):
        foot = page.locator(f"#foot-{name}")
        expect(foot).to_contain_text(re.compile("ended by itself|cut at"), timeout=2 * MINUTE)
        expect(foot).to_contain_text(re.compile(r"tokens/s.*total"))
    expect(page.locator("#foot-base")).to_contain_text("bf16 weights, adapter none")
    expect(page.locator("#foot-adapter")).to_contain_text("nf4 weights, adapter on")
    expect(page.locator("#foot-merged")).to_contain_text("bf16 weights, adapter merged")
    expect(page.locator("#chat-adapter")).to_contain_text('"category"')
    screenshot(page, "chat")

    retry_multi_turn_stop_and_clear(page)
    page.click("#save-merged")
    expect(page.locator("#saved")).to_contain_text(re.compile("merged-dequantized.*mean KL divergence"), timeout=MINUTE)
    page.click("#free")
    expect(page.locator("#status")).to_contain_text("device is free", timeout=MINUTE)


def retry_multi_turn_stop_and_clear(page: Page) -> None:
    page.click("#clear")
    page.click("#retry")
    expect(page.get_by_text("there is nothing to retry")).to_be_visible()
    page.locator("#examples").get_by_role("button").first.click()
    page.click("#send")
    for name in ("base", "adapter", "merged"):
        expect(page.locator(f"#foot-{name}")).to_contain_text(re.compile("ended by itself|cut at"), timeout=MINUTE)
    first = page.locator("#chat-adapter").inner_text()
    page.click("#retry")
    expect(page.locator("#foot-base")).to_contain_text("…")
    for name in ("base", "adapter", "merged"):
        expect(page.locator(f"#foot-{name}")).to_contain_text(re.compile("ended by itself|cut at"), timeout=MINUTE)
    assert page.locator("#chat-adapter").inner_text() == first

    page.fill("#prompt textarea", "Tell me a very long story about a printer.")
    page.press("#prompt textarea", "Enter")
    expect(page.locator("#foot-base")).to_contain_text(re.compile(r"answer\s*[3-9] tokens"), timeout=MINUTE)
    page.click("#stop-answer")
    expect(page.locator("#foot-base")).to_contain_text(re.compile("stopped by hand|ended by itself"), timeout=MINUTE)
    expect(page.locator("#chat-base")).to_contain_text("Tell me a very long story")

    page.fill("#prompt textarea", "Tell me another very long story about a scanner.")
    page.click("#send")
    expect(page.locator("#foot-base")).to_contain_text(re.compile(r"answer\s*[3-9] tokens"), timeout=MINUTE)
    page.click("#clear")
    expect(page.locator("#chat-base")).not_to_contain_text("scanner")
    expect(page.locator("#status")).to_contain_text("chat of run")
    expect(page.locator("#foot-base")).not_to_contain_text("tokens")
    expect(page.locator("#chat-base")).not_to_contain_text("scanner")


def test_mistakes_are_told_in_one_line(page: Page) -> None:
    toast = page.locator(".toast-wrap, .toast-body").first
    set_number(page, "r", "0")
    page.click("#start")
    expect(toast).to_contain_text("r: 0 is not allowed; give a whole number >= 1 and <= 256")
    expect(page.locator("#progress")).to_contain_text("No run yet")

    tab(page, "Chat")
    page.fill("#prompt textarea", "hello")
    page.click("#send")
    expect(page.get_by_text("run: none is finished yet")).to_be_visible()
    expect(page.locator("#prompt textarea")).to_have_value("hello")
    expect(page.locator("#chat-base")).not_to_contain_text("Error")


def test_a_model_that_does_not_exist_is_told_and_leaves_no_run(page: Page) -> None:
    page.locator("#TrainConfig-model input").fill("./no-such-folder")
    page.keyboard.press("Enter")
    page.click("#start")
    expect(page.get_by_text("'./no-such-folder' is no folder here")).to_be_visible(timeout=MINUTE)
    expect(page.locator("#progress")).to_contain_text("No run yet")


def test_a_damaged_adapter_is_told_and_the_app_goes_on(page: Page, server: Server) -> None:
    services = build_services(Settings.from_environment())
    run = services.runs.create(TrainConfig())
    run.adapter.mkdir()
    write_state(run.path, RunState(status="finished"))
    tab(page, "Chat")
    expect(page.locator("#chat-run input")).to_have_value(re.compile(run.id))
    page.fill("#prompt textarea", "hello")
    page.click("#send")
    expect(page.get_by_text(re.compile("is missing; train again|tokenizer"))).to_be_visible(timeout=MINUTE)
    expect(page.locator("#status")).to_contain_text("device is free", timeout=MINUTE)


def test_html_in_a_run_is_shown_as_text(page: Page, server: Server) -> None:
    services = build_services(Settings.from_environment())
    run = services.runs.create(TrainConfig())
    write_state(run.path, RunState(status="failed", error="<img src=x onerror=alert(1)>"))
    expect(page.locator("#progress")).to_contain_text("<img src=x onerror=alert(1)>", timeout=MINUTE)
    assert page.locator("#progress img").count() == 0
