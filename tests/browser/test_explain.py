"""The Explain tab in Chromium: every figure is computed when it is drawn."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Settings
from tests.browser.conftest import Server
from tests.browser.test_page import MINUTE, screenshot, tab
from tests.tiny import save_adapter

pytestmark = [pytest.mark.browser]


def test_a_layer_an_update_and_the_ledger(page: Page, server: Server, tiny_model: Path) -> None:
    services = build_services(Settings.from_environment())
    run = services.runs.create(TrainConfig(model=str(tiny_model), r=4, lora_alpha=8))
    save_adapter(tiny_model, run.adapter)
    write_state(run.path, RunState(status="finished"))
    tab(page, "Explain")
    expect(page.locator("#explain-size")).to_contain_text("65,536 parameters, 0.4%")
    expect(page.locator("#explain-size")).to_contain_text("16,781,312 parameters with its bias")
    expect(page.locator("#ledger")).to_contain_text(re.compile("total.*GiB.*fits", re.DOTALL))
    expect(page.locator("#explain-layer input")).to_have_value(re.compile("_proj"), timeout=MINUTE)
    page.click("#explain")
    expect(page.locator("#spectrum")).to_contain_text("hold 90% of the update's energy", timeout=MINUTE)
    expect(page.locator("#spectrum")).to_contain_text(re.compile(r"could hold\s*1\s*\d.*2\s*\d.*4\s*100", re.DOTALL))
    expect(page.locator("#explain-size")).to_contain_text("rank 8 could hold 100.0% of the energy")
    page.locator("#explain-r input[type=number]").fill("2")
    expect(page.locator("#explain-size")).to_contain_text(re.compile(r"rank 2 could hold \d\d\.\d% of the energy"))
    expect(page.locator("#nf4")).to_contain_text("int4 (absmax)")
    expect(page.locator("#bits")).to_contain_text("4.1270")
    expect(page.locator("#one-pass")).to_contain_text("unchanged")
    expect(page.locator("#merging")).to_contain_text("Measure Merge fidelity")
    expect(page.locator("#rounding")).to_contain_text(
        re.compile(r"merged onto the dequantized base, in 16 bit\s*\d.*onto the original base, in NF4", re.DOTALL)
    )
    expect(page.locator("#rounding")).to_contain_text(
        re.compile(r"NF4, the update beside it.*µs.*merged in 16 bit.*µs", re.DOTALL)
    )
    expect(page.locator("#paging")).to_contain_text(re.compile(r"paged_adamw|adamw_torch"))
    page.get_by_role("button", name="The code of such a layer").click()
    expect(page.locator("#lora-linear")).to_contain_text("class LoRALinear")
    screenshot(page, "explain")
    page.locator("#ledger-card input, #ledger-card textarea").first.fill("2GB")
    expect(page.locator("#ledger")).to_contain_text(re.compile(r"fits\s*no\s*no\s*no"), timeout=MINUTE)


@pytest.mark.bundled
def test_before_any_run_the_base_model_s_own_layers_are_looked_into(page: Page, server: Server) -> None:
    tab(page, "Explain")
    expect(page.locator("#explain-layer input")).to_have_value(re.compile("_proj"), timeout=MINUTE)
    page.click("#explain")
    expect(page.locator("#nf4")).to_contain_text("int4 (absmax)", timeout=MINUTE)
    expect(page.locator("#one-pass")).to_contain_text("unchanged")
    expect(page.locator("#spectrum")).to_contain_text("No run is finished yet")
    page.locator("#explain-r input[type=number]").fill("2")
    expect(page.locator("#explain-size")).to_contain_text("16,384 parameters")
