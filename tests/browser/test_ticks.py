"""What an open page asks for when nobody touches it: every tick is a request, and drawn anew."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.browser.test_page import tab

pytestmark = [pytest.mark.browser]
_SETTLED, _LOOKED = 1200, 3300


def ticking(page: Page, opening: Callable[[], None]) -> set[int]:
    """The handlers that a page asks for when nobody touches it any more."""
    asked: set[int] = set()

    def note(request: Request) -> None:
        if "/queue/join" in request.url:
            asked.add(json.loads(request.post_data or "{}")["fn_index"])

    opening()
    page.wait_for_timeout(_SETTLED)
    page.on("request", note)
    page.wait_for_timeout(_LOOKED)
    page.remove_listener("request", note)
    return asked


def test_only_the_open_tab_s_timers_tick_however_and_whenever_it_was_opened(page: Page, browser: Browser) -> None:
    expect(page.locator("#plan p").first).to_be_visible()
    train = ticking(page, lambda: None)
    chat = ticking(page, lambda: tab(page, "Chat"))
    evaluate = ticking(page, lambda: tab(page, "Evaluate"))
    first = page.get_by_role("button", name="No run is finished yet: train one")
    again = ticking(page, lambda: first.first.click())
    live = ticking(page, lambda: tab(page, "Live"))
    own = (train & again) - chat - evaluate - live
    assert len(own) == 1, "the chosen run's panel, and the history with it"
    results = evaluate - train - chat - again - live
    assert results
    assert not (chat - train - again), "only what stands above the tabs"

    for _ in range(2):
        drawing = browser.new_page()
        drawing.goto(page.url)
        tab(drawing, "Evaluate")
        looks = (ticking(drawing, lambda: None) for _ in range(10))
        assert any(results <= asked and not own & asked for asked in looks), "the page says late what is open first"
        drawing.close()
