"""The prompt stays in view below its answers, and nothing stays hidden behind it."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_page import tab

pytestmark = pytest.mark.browser
_OVERLAP = """selector => {
  const [a, b] = [selector, "#ask"].map(one => document.querySelector(one).getBoundingClientRect());
  return Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
}"""


_BEHIND = """selector => {
  window.scrollTo({top: 0, behavior: "instant"});
  const [a, b] = [selector, "#ask"].map(one => document.querySelector(one).getBoundingClientRect());
  window.scrollBy({top: a.top - b.top - 20, behavior: "instant"});
}"""


@pytest.mark.parametrize("size", [(1280, 800), (920, 620)])
def test_the_prompt_is_in_view_whatever_it_holds_and_hides_no_focus(page: Page, size: tuple[int, int]) -> None:
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    tab(page, "Chat")
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    page.locator("#prompt textarea").fill("\n".join("a line of a long prompt" for _ in range(30)))
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    row = page.locator("#ask").bounding_box()
    assert row is not None and row["height"] < height / 3
    page.locator("#halt-0").focus()
    page.evaluate(_BEHIND, "#again-0")
    assert page.evaluate(_OVERLAP, "#again-0") > 0
    page.keyboard.press("Shift+Tab")
    expect(page.locator("#again-0")).to_be_focused()
    page.wait_for_function(f"({_OVERLAP})('#again-0') <= 0")


def test_on_a_small_window_it_is_a_row_like_others(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    tab(page, "Chat")
    assert page.evaluate("getComputedStyle(document.querySelector('#ask')).position") != "sticky"
