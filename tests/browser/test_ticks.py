"""What an open page asks for when nobody touches it: every tick is a request, and drawn anew."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, Request, expect

from tests.browser.test_page import tab

pytestmark = [pytest.mark.browser]
_SETTLED, _LOOKED = 1500, 5500


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
    everywhere = ticking(lambda: tab(page, "Chat"))
    assert everywhere < train, "the line at the top and the guide"
    evaluate = ticking(lambda: tab(page, "Evaluate"))
    assert everywhere < evaluate and not (evaluate - everywhere) & train
    first = page.get_by_role("button", name="No run is finished yet: train one")
    assert ticking(lambda: first.first.click()) == train
    assert ticking(lambda: tab(page, "Live")) > everywhere
