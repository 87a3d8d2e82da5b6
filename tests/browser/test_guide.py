"""A newcomer on an empty home who presses what the guide offers, and nothing else but Send, ends with a report."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Server
from tests.browser.test_page import ENDED, MINUTE, all_answered, screenshot, set_number, set_rows, tab

pytestmark = [pytest.mark.browser, pytest.mark.bundled]


def next_is(page: Page, stage: str, timeout: int = MINUTE) -> None:
    expect(page.locator("#guide [aria-current=step]")).to_have_text(stage, timeout=timeout)
    expect(page.locator("#guide button:visible")).to_have_count(1, timeout=timeout)


def test_from_an_empty_home_to_a_downloaded_report(page: Page, server: Server) -> None:
    next_is(page, "Data")
    page.click("#guide-data")
    expect(page.locator("#preflight")).to_contain_text("Nothing is wrong with it", timeout=MINUTE)

    next_is(page, "Before")
    screenshot(page, "guide")
    page.click("#guide-before")
    expect(page.locator("#send")).to_be_focused()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.keyboard.press("Enter")
    expect(page.locator("#foot-0")).to_contain_text(ENDED, timeout=MINUTE)
    expect(page.locator("#foot-0")).to_contain_text("bf16 weights, adapter none")
    expect(page.locator("#column-1")).to_be_hidden()

    next_is(page, "Train")
    tab(page, "Train")
    set_number(page, "max_steps", "3")
    set_number(page, "eval_rows", "2")
    page.click("#guide-train")
    expect(page.locator("#guide")).to_contain_text(re.compile("The run is (starting|loading|running)"), timeout=MINUTE)
    expect(page.locator("#progress")).to_contain_text("finished · step 3 of 3", timeout=3 * MINUTE)

    next_is(page, "After")
    page.click("#guide-after")
    expect(page.locator("#send")).to_be_focused()
    expect(page.locator("#column-2")).to_be_visible()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    page.keyboard.press("Enter")
    all_answered(page, 2 * MINUTE)

    next_is(page, "Measure")
    tab(page, "Evaluate")
    set_rows(page, "2")
    page.click("#guide-measure")
    expect(page.locator("#guide")).to_contain_text("At work: evaluation", timeout=MINUTE)
    next_is(page, "Report", 2 * MINUTE)
    page.click("#guide-report")
    link = page.locator("#report-files a[href$='.html']").first
    expect(link).to_be_visible(timeout=MINUTE)
    with page.expect_download() as download:
        link.click()
    assert "Before and after" in download.value.path().read_text("utf-8")
    expect(page.locator("#guide")).to_be_hidden()
