"""The real page in Chromium: a file of one's own, columns corrected, checked, trained, stopped, resumed,
compared, asked a set of prompts, merged and exported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from qlora_demo.compose import build_services
from qlora_demo.settings import Settings
from tests.browser.conftest import Server
from tests.browser.test_page import MINUTE, screenshot, set_number, tab

pytestmark = [pytest.mark.browser]


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows = [{"frage": f"what is {n}?", "antwort": f"it is {n}"} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def choose(page: Page, field: str, value: str) -> None:
    page.locator(f"#TrainConfig-{field} input").first.fill(value)
    page.keyboard.press("Enter")


def give_file(page: Page, button: str, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click(button)
    chooser.value.set_files(path)


def test_upload_correct_check_train_stop_resume_overlay_ask_and_export(
    page: Page, server: Server, own_file: Path, tiny_model: Path
) -> None:
    choose(page, "model", str(tiny_model))
    set_number(page, "max_length", "64")
    expect(page.locator("#plan")).to_contain_text(re.compile(r"fits.*parameters are trained", re.DOTALL))
    give_file(page, "#upload", own_file)
    expect(page.locator("#TrainConfig-dataset input")).to_have_value(re.compile("mine.jsonl"), timeout=MINUTE)
    page.click("#check-data")
    expect(page.locator("#preflight")).to_contain_text("Cannot be used: 60 rows (must be fixed)", timeout=MINUTE)
    page.click("#start")
    refused = re.compile(r"dataset: .*mine\.jsonl, line 1: columns frage, antwort .*\(cannot be used: 60 rows\)")
    expect(page.get_by_text(refused).first).to_be_visible()
    expect(page.locator("#preflight")).to_contain_text("line 1: columns frage, antwort are not understood")
    expect(page.locator("#progress")).to_contain_text("No run yet")
    assert build_services(Settings.from_environment()).runs.names() == []
    page.locator("#TrainConfig-columns textarea, #TrainConfig-columns input").first.fill(
        "prompt=frage, completion=antwort"
    )
    page.click("#check-data")
    expect(page.locator("#preflight")).to_contain_text("60 rows, columns read as", timeout=MINUTE)
    expect(page.locator("#preflight")).to_contain_text("No problems found")
    expect(page.locator("#preflight .rendered mark").first).to_contain_text("it is 0")
    screenshot(page, "preflight")

    set_number(page, "max_steps", "4000")
    set_number(page, "r", "4")
    page.click("#start")
    progress = page.locator("#progress")
    expect(progress).to_contain_text(re.compile(r"running · step [1-9]\d* of 4000"), timeout=MINUTE)
    set_number(page, "max_steps", "5")
    page.click("#start")
    expect(page.locator("#queue")).to_contain_text("Waiting for the device", timeout=MINUTE)
    page.locator("#run input").click()
    page.get_by_role("option", name=re.compile("running")).click()
    page.click("#stop")
    expect(progress).to_contain_text("stopped · step", timeout=MINUTE)
    expect(page.locator("#queue")).not_to_contain_text("Waiting", timeout=MINUTE)
    expect(page.locator("#runs")).to_contain_text("finished", timeout=2 * MINUTE)

    expect(page.locator("#resume")).to_contain_text(re.compile(r"Resume from step \d+"))
    page.click("#resume")
    expect(progress).to_contain_text(re.compile(r"running · step [1-9]\d* of 4000"), timeout=MINUTE)
    page.click("#stop")
    expect(progress).to_contain_text("stopped · step", timeout=MINUTE)
    expect(progress).to_contain_text("Resumed: from step")

    overlay_two_runs(page)
    tab(page, "Evaluate")
    prompt_set(page)
    export_merged(page)


def overlay_two_runs(page: Page) -> None:
    for name in build_services(Settings.from_environment()).runs.names():
        page.locator("#overlay input").fill(name)
        page.keyboard.press("Enter")
    compared = page.locator("#compared")
    expect(compared).to_contain_text(re.compile("mean training loss.*median step", re.DOTALL), timeout=MINUTE)
    expect(compared).to_contain_text(re.compile(r"max_steps\s*(4000\s*5|5\s*4000)"))
    expect(compared.locator("svg").first).to_be_visible()
    page.fill("#note textarea", "the <b>first</b> try")
    page.fill("#tags input, #tags textarea", "tiny, first")
    page.click("#save-note")
    expect(page.locator("#runs")).to_contain_text("the <b>first</b> try", timeout=MINUTE)


def prompt_set(page: Page) -> None:
    page.get_by_role("button", name="Prompt sets").click()
    page.fill("#prompt-set textarea", "The Corvid Cast is on fire.\nMy invoice is wrong.")
    page.click("#ask-all")
    expect(page.locator("#job")).to_contain_text(re.compile("prompts.*ended", re.DOTALL), timeout=2 * MINUTE)
    expect(page.locator("#prompts")).to_contain_text(
        re.compile(r"The Corvid Cast is on fire\..*tokens.*My invoice is wrong\.", re.DOTALL)
    )


def export_merged(page: Page) -> None:
    page.get_by_role("button", name="Merge and export").click()
    page.click("#export")
    expect(page.locator("#job")).to_contain_text(re.compile("export.*ended", re.DOTALL), timeout=2 * MINUTE)
    expect(page.locator("#exported")).to_contain_text(
        re.compile("merged in .*merged-dequantized.*vllm serve", re.DOTALL)
    )


def test_presets_and_a_config_that_is_saved_and_loaded(page: Page, server: Server, tmp_path: Path) -> None:
    page.get_by_role("button", name="Presets and sharing").click()
    page.get_by_label("First look").check()
    expect(page.locator("#TrainConfig-max_steps input")).to_have_value("30")
    expect(page.get_by_label("First look")).to_be_checked()
    page.locator("#TrainConfig-max_steps input").fill("31")
    expect(page.get_by_label("First look")).not_to_be_checked()
    page.get_by_label("First look").check()
    expect(page.locator("#TrainConfig-max_steps input")).to_have_value("30")
    expect(page.locator("#command")).to_contain_text("python -m qlora_demo train --r=8")
    page.get_by_role("button", name="Advanced").click()
    page.locator("#processes input").fill("2")
    expect(page.locator("#command")).to_contain_text("--processes 2")
    page.click("#save-config")
    expect(page.locator("#config-file")).to_contain_text(re.compile(r"config\s*\.json"))
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"r": 4, "method": "lora", "use_dora": True}), "utf-8")
    give_file(page, "#load-config", saved)
    expect(page.locator("#TrainConfig-r input")).to_have_value("4")
    page.get_by_role("button", name="More about the method").click()
    expect(page.locator("#TrainConfig-use_dora input")).to_be_checked()
    saved.write_text('{"rank": 4}', "utf-8")
    give_file(page, "#load-config", saved)
    expect(page.get_by_text("rank: unknown field")).to_be_visible()

    choose(page, "target_modules", "query")
    expect(page.locator("#plan")).to_contain_text("'query' is no layer that can be adapted; choose of down_proj")
    choose(page, "target_modules", "all-linear")
    expect(page.locator("#plan")).to_contain_text("parameters are trained")
    page.locator("#TrainConfig-packing input").check()
    expect(page.locator("#plan")).to_contain_text("packing: needs FlashAttention")


def test_lora_and_qlora_as_a_pair(page: Page, server: Server, chat_file: Path, tiny_model: Path) -> None:
    choose(page, "model", str(tiny_model))
    choose(page, "dataset", str(chat_file))
    set_number(page, "max_length", "64")
    set_number(page, "max_steps", "3")
    set_number(page, "r", "4")
    page.click("#start-pair")
    compared = page.locator("#compared")
    expect(compared).to_contain_text(re.compile(r"method\s*qlora, r 4\s*lora, r 4"), timeout=3 * MINUTE)
    expect(compared).to_contain_text(re.compile(r"state\s*finished\s*finished"), timeout=4 * MINUTE)
    expect(compared).to_contain_text(re.compile(r"score \(exact match\)\s*\d+\.\d% of \d+ rows\s*\d+\.\d% of \d+ rows"))
    expect(compared).to_contain_text(re.compile(r"median step\s*\d+.*s\s*\d+.*s"))
    expect(page.locator("#runs")).to_contain_text("LoRA against QLoRA")
