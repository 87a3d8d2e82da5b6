"""A visitor's page and an operator's, in Chromium: what is greyed out, the password, limits as they are told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import RunStore, write_state
from qlora_demo.settings import Settings
from tests.browser.conftest import Server
from tests.browser.readable import TABS, wrong_with
from tests.browser.test_page import screenshot, tab

pytestmark = pytest.mark.browser
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An app with a password on a home of its own."""
    folder = tmp_path_factory.mktemp("guarded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_DEMO_PASSWORD", PASSWORD)
        patch.setenv("QLORA_DEMO_VISITOR_REQUESTS", "2")
        patch.setenv("QLORA_DEMO_BUNDLED", str(folder))
        patch.setenv("QLORA_DEMO_HOME", str(folder / "home"))
        made = Server(folder / "app.log")
    yield made
    made.kill()


@pytest.fixture
def visited(browser: Browser, guarded: Server) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(guarded.url)
    yield opened
    context.close()
    assert errors == []


def test_a_visitor_s_page_an_operator_s_and_the_way_from_one_to_the_other(visited: Page, guarded: Server) -> None:
    account = visited.locator("#account")
    expect(account).to_contain_text("You are a visitor: chat with the finished runs, vote, look at all results.")
    expect(visited.get_by_text("Controls that are greyed out are for operators").first).to_be_visible()
    for control in ("#start", "#start-pair", "#delete", "#check-data", "#save-note"):
        expect(visited.locator(control)).to_be_disabled()
    expect(visited.locator("#TrainConfig-r input").first).to_be_disabled()
    expect(visited.get_by_role("tab", name="Live")).to_have_count(0)
    screenshot(visited, "visitor")
    tab(visited, "Evaluate")
    for control in ("#evaluate", "#fidelity-start", "#stop-job", "#report"):
        expect(visited.locator(control)).to_be_disabled()
    tab(visited, "Chat")
    for control in ("#keep", "#free"):
        expect(visited.locator(control)).to_be_disabled()
    expect(visited.locator("#send")).to_be_enabled()
    told_of_the_limit(visited)

    sign_in(visited, "wrong password")
    expect(account).to_contain_text("That password is wrong; ask whoever runs this app.")
    expect(visited.locator("#start")).to_be_disabled()
    sign_in(visited, PASSWORD)
    expect(account).to_contain_text("You are signed in: an operator.")
    expect(visited.locator("#start")).to_be_enabled()
    expect(visited.locator("#TrainConfig-r input").first).to_be_enabled()
    expect(visited.get_by_text("Controls that are greyed out are for operators").first).to_be_hidden()
    tab(visited, "Live")
    expect(visited.locator("#live")).to_contain_text(
        re.compile("Device.*held by.*nobody.*waiting.*runs kept", re.DOTALL)
    )
    screenshot(visited, "live")
    assert PASSWORD not in guarded.log.read_text("utf-8")
    visited.reload()
    expect(account).to_contain_text("an operator")
    account.get_by_role("button", name="Sign out").click()
    expect(account).to_contain_text("You are a visitor")
    expect(visited.locator("#start")).to_be_disabled()


def told_of_the_limit(page: Page) -> None:
    for _ in range(3):
        page.click("#retry")
    expect(
        page.get_by_text(re.compile(r"requests \(QLORA_DEMO_VISITOR_REQUESTS\): 2 in a minute is the most"))
    ).to_be_visible()


def sign_in(page: Page, password: str) -> None:
    page.get_by_label("Operators:").fill(password)
    page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize(("theme", "width", "height"), [("light", 1280, 900), ("dark", 390, 844)])
def test_a_visitor_s_page_can_be_read_by_everyone(
    browser: Browser, guarded: Server, theme: str, width: int, height: int
) -> None:
    """With all that is greyed out, the form to sign in and what it answers, and a run whose figures are shown."""
    run = RunStore(Settings(guarded.home).runs).create(TrainConfig())
    run.adapter.mkdir()
    write_state(run.path, RunState("finished", summary={"train_loss": 1.0}))
    tabs = [name for name in TABS if name != "Live"]
    assert wrong_with(browser, f"{guarded.url}?sign-in=wrong&__theme={theme}", width, height, tabs) == []


def test_a_space_offers_to_be_duplicated_and_says_why_nobody_can_train(
    browser: Browser, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPACE_ID", "someone/qlora-demo")
    monkeypatch.setenv("QLORA_DEMO_BUNDLED", str(tmp_path))
    server = Server(tmp_path / "app.log")
    page = browser.new_page()
    page.goto(server.url)
    account = page.locator("#account")
    expect(account).to_contain_text("Training is off and nobody is an operator: QLORA_DEMO_PASSWORD is not set")
    link = account.get_by_role("link", name="Duplicate this Space")
    expect(link).to_have_attribute("href", "https://huggingface.co/spaces/someone/qlora-demo?duplicate=true")
    expect(page.locator("#start")).to_be_disabled()
    page.close()
    server.kill()
    assert "Training is off and nobody is an operator" in server.log.read_text("utf-8")
