"""On a narrow window nothing that is written is cut: choices stand below each other."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.readable import open_tab

pytestmark = pytest.mark.browser
_CUT = "element => element.scrollWidth > element.clientWidth"


@pytest.mark.parametrize(
    ("width", "name", "above", "below"),
    [(375, "Chat", "#columns", "#blind"), (390, "Explain", "#explain-run", "#explain-layer")],
)
def test_choices_stand_below_each_other(page: Page, width: int, name: str, above: str, below: str) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    page.reload()
    page.locator("#plan p").first.wait_for(timeout=60_000)  # by then the tabs have their places
    open_tab(page, name)
    expect(page.locator(below)).to_be_visible()
    first, second = page.locator(above).bounding_box(), page.locator(below).bounding_box()
    assert first and second and second["y"] >= first["y"] + first["height"]
    assert not page.locator(below).evaluate(_CUT)
