"""Every tab in light and dark, wide and on a phone: axe finds nothing serious, nothing runs off the page, and nothing
that a person looks at moves while a run trains or answers stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Server
from tests.browser.test_page import MINUTE, all_answered, ask_example, screenshot, set_number, set_rows, tab

pytestmark = [pytest.mark.browser, pytest.mark.bundled]

TABS = ("Train", "Chat", "Evaluate", "Benchmark", "Explain", "Live")
LOOKS = [("light", 1280, 900), ("dark", 390, 844)]
SERIOUS = {"serious", "critical"}
# https://web.dev/articles/cls: what counts as good.
MOST_SHIFT = 0.1
WATCH_SHIFTS = """() => {
  window.shifts = [];
  new PerformanceObserver(list => { for (const entry of list.getEntries()) if (!entry.hadRecentInput)
    window.shifts.push([entry.value, entry.sources.map(source => {
      const node = source.node && (source.node.nodeType === 1 ? source.node : source.node.parentElement);
      return node ? (node.closest("[id]") || node).outerHTML.slice(0, 120) : ""; })]);
  }).observe({type: "layout-shift"});
}"""


def found_by_axe(page: Page) -> list[str]:
    """What is serious, as rule and place; of each rule the first three places."""
    results: dict[str, Any] = Axe().run(page).response
    return [
        f"{one['id']}: {node['html'][:150]} ({node.get('failureSummary', '')[:150]})"
        for one in results["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"][:3]
    ]


@contextmanager
def steady(page: Page) -> Iterator[None]:
    """Nothing jumps meanwhile; what a person's own click moves does not count."""
    page.evaluate(WATCH_SHIFTS)
    yield
    shifts: list[Any] = page.evaluate("window.shifts")
    assert sum(value for value, _ in shifts) <= MOST_SHIFT, shifts


def test_axe_finds_nothing_serious_and_nothing_jumps(page: Page, server: Server, browser: Browser) -> None:
    set_number(page, "max_steps", "3")
    set_number(page, "eval_rows", "2")
    page.click("#start")
    expect(page.locator("#progress")).to_contain_text("of 3", timeout=MINUTE)
    with steady(page):
        expect(page.locator("#progress")).to_contain_text("finished · step 3 of 3", timeout=3 * MINUTE)
    tab(page, "Chat")
    expect(page.locator("#placement")).to_contain_text("loads base, adapter, merged")
    page.locator("#examples").get_by_role("button").first.click()
    expect(page.locator("#prompt textarea")).not_to_have_value("")
    with steady(page):
        page.click("#send")
        all_answered(page, 2 * MINUTE)
    with steady(page):
        ask_example(page)
        all_answered(page, 2 * MINUTE)
    tab(page, "Evaluate")
    set_rows(page, "1")
    page.click("#evaluate")
    expect(page.locator("#job")).to_contain_text("ended", timeout=2 * MINUTE)

    found = {
        (theme, name): wrong
        for theme, width, height in LOOKS
        for name, wrong in looked_at(browser, f"{server.url}?__theme={theme}", width, height).items()
        if wrong
    }
    assert found == {}


def looked_at(browser: Browser, url: str, width: int, height: int) -> dict[str, list[str]]:
    """What is wrong with each tab at one size."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(url)
    expect(page.locator("#plan")).to_contain_text("GiB", timeout=MINUTE)
    found = {}
    for name in TABS:
        open_tab(page, name)
        page.wait_for_timeout(1500)
        screenshot(page, f"{name.lower()}-{width}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        found[name] = found_by_axe(page) + ([f"{wide} px wide"] if wide > width else [])
    context.close()
    return found


def open_tab(page: Page, name: str) -> None:
    """Where there is no room for all tabs, Gradio keeps the others behind a button."""
    if not page.get_by_role("tab", name=name).is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_role("button", name=re.compile(name)).click()
        return
    tab(page, name)
