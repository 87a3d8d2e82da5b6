"""What a page must not do: jump while somebody looks at it, run off its window, hide from a keyboard or a reader."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

TABS = ("Train", "Chat", "Evaluate", "Benchmark", "Explain", "Live")
_SERIOUS = {"serious", "critical"}
# https://web.dev/articles/cls: what counts as good.
_MOST_SHIFT = 0.1
_WATCH_SHIFTS = """() => {
  const watched = window.shifts;
  window.shifts = [];
  const place = node => node && (node.nodeType === 1 ? node : node.parentElement).outerHTML.slice(0, 120);
  if (!watched) new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput)
      window.shifts.push([entry.value, entry.sources.map(source => place(source.node))]);
  }).observe({type: "layout-shift"});
}"""


@contextmanager
def steady(page: Page) -> Iterator[None]:
    """Nothing jumps meanwhile; what a person's own click moves does not count."""
    page.evaluate(_WATCH_SHIFTS)
    yield
    shifts: list[Any] = page.evaluate("window.shifts")
    assert sum(value for value, _ in shifts) <= _MOST_SHIFT, shifts


def wrong_with(browser: Browser, url: str, width: int, height: int, tabs: Sequence[str] = TABS) -> list[str]:
    """What is wrong with the tabs at one size: axe's serious findings, pages wider than the window, and messages to
    somebody who only looked."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.goto(url)
    page.locator("#plan p").first.wait_for(timeout=60_000)
    found = []
    for name in tabs:
        open_tab(page, name)
        page.wait_for_timeout(400)  # the page polls: its network is never idle
        wide = page.evaluate("document.documentElement.scrollWidth")
        messages = page.locator(".toast-body").all_inner_texts()
        told = [*_found_by_axe(page), *([f"{wide} px wide"] if wide > width else []), *messages]
        found += [f"{name} at {width}: {wrong}" for wrong in told]
    context.close()
    return found


def open_tab(page: Page, name: str) -> None:
    """Where there is no room for all tabs, Gradio keeps the others behind a button."""
    shown = page.get_by_role("tab", name=name)
    if not shown.is_visible():
        page.locator(".overflow-menu > button").click()
        shown = page.locator(".overflow-dropdown").get_by_role("button", name=re.compile(name))
    shown.click()


def _found_by_axe(page: Page) -> list[str]:
    """What is serious, as rule and place; of each rule the first three places."""
    results: dict[str, Any] = Axe().run(page).response
    return [
        f"{one['id']}: {node['html'][:150]} ({node.get('failureSummary', '')[:200]})"
        for one in results["violations"]
        if one["impact"] in _SERIOUS
        for node in one["nodes"][:3]
    ]
