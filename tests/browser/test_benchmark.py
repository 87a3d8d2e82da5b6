"""The Benchmark tab in Chromium: a shape without weights is measured, told, downloaded, and laid beside another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.test_page import MINUTE, screenshot, tab

pytestmark = [pytest.mark.browser, pytest.mark.processes]


def setting(page: Page, name: str, value: str) -> None:
    page.locator(f"#benchmark-TrainConfig-{name} input").first.fill(value)


def test_a_shape_is_measured_and_its_result_compared(page: Page, tmp_path: Path) -> None:
    tab(page, "Benchmark")
    expect(page.locator("#benchmark-progress")).to_contain_text("Nothing measured yet")
    page.locator("#benchmark-kind").get_by_text("rank", exact=True).click()
    page.locator("#BenchmarkConfig-ranks textarea, #BenchmarkConfig-ranks input").first.fill("2,x")
    setting(page, "model", "shape:tiny")
    setting(page, "max_length", "32")
    page.click("#benchmark-start")
    expect(page.get_by_text("'2,x' is not allowed; give whole numbers")).to_be_visible()
    page.locator("#BenchmarkConfig-ranks textarea, #BenchmarkConfig-ranks input").first.fill("2")
    page.locator("#BenchmarkConfig-targets textarea, #BenchmarkConfig-targets input").first.fill("attention")
    page.click("#benchmark-start")
    progress, result = page.locator("#benchmark-progress"), page.locator("#benchmark-result")
    expect(progress).to_contain_text("r 2, attention (1 of 1)", timeout=MINUTE)
    page.reload()
    tab(page, "Benchmark")
    expect(progress).to_contain_text("finished in", timeout=3 * MINUTE)
    for told in ("trainable parameters", "peak", "step, median", "tokens/s", "Measured ", "torch 2.13"):
        expect(result).to_contain_text(told)
    expect(result.locator("svg text").filter(has_text=re.compile("^(rank r|GiB|tokens/s)$"))).to_have_count(4)
    with page.expect_download() as download:
        page.click("#benchmark-file")
    sent = tmp_path / "sent.json"
    download.value.save_as(sent)
    assert [row["case"] for row in json.loads(sent.read_text("utf-8"))["rows"]] == ["r 2, attention"]
    page.get_by_role("button", name="Compare with another result").click()
    page.locator("#benchmark-sent input[type=file]").set_input_files(sent)
    expect(page.locator("#benchmark-sent")).to_contain_text(re.compile(r"sent\s*\.json"))
    page.click("#benchmark-compare")
    expect(page.locator("#benchmark-compared")).to_contain_text(
        re.compile(r"r 2, attention.*tokens/s.*1\.00", re.DOTALL)
    )
    screenshot(page, "benchmark")
    page.click("#benchmark-delete")
    page.click("#benchmark-delete-sure")
    expect(progress).to_contain_text("Nothing measured yet")
