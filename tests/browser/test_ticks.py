"""What an open page asks for when nobody touches it: every tick is a request, and drawn anew."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser.test_page import tab

pytestmark = [pytest.mark.browser]
_SETTLED, _LOOKED = 1200, 3300


def test_only_the_open_tab_s_timers_tick_however_it_was_opened(page: Page) -> None:
    asked: set[int] = set()

    def note(request: Request) -> None:
        if "/queue/join" in request.url:
            asked.add(json.loads(request.post_data or "{}")["fn_index"])

    def ticking(opening: Callable[[], None]) -> set[int]:
        opening()
        page.wait_for_timeout(_SETTLED)
        asked.clear()
        page.wait_for_timeout(_LOOKED)
        return set(asked)

    page.on("request", note)
    expect(page.locator("#plan p").first).to_be_visible()
    train = ticking(lambda: None)
    chat = ticking(lambda: tab(page, "Chat"))
    evaluate = ticking(lambda: tab(page, "Evaluate"))
    first = page.get_by_role("button", name="No run is finished yet: train one")
    again = ticking(lambda: first.first.click())
    live = ticking(lambda: tab(page, "Live"))
    own = (train & again) - chat - evaluate - live
    assert len(own) == 1, "the chosen run's panel, and the history with it"
    assert evaluate - train - chat - again - live, "the results"
    assert not (chat - train - again), "only what stands above the tabs"
