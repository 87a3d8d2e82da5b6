"""On a Space the page is a frame in the hub's, over TLS and behind the hub's proxy: who signs in there stays signed in,
also in a browser that blocks other sites' cookies."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import ROOT, Server
from tests.browser.front import AUTHORIZE, HUB, SPACE
from tests.calls import free_port
from tests.conftest import launched
from tests.open_id import answering
from tests.queueing import until

pytestmark = pytest.mark.browser
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port at which the hub's page and the Space answer; an app with a password is behind the latter."""
    folder = tmp_path_factory.mktemp("front")
    with answering() as open_id, pytest.MonkeyPatch.context() as patch:
        open_id.authorize = f"https://{HUB}{AUTHORIZE}"
        for name, value in chosen_for(folder, open_id.url).items():
            patch.setenv(name, value)
        app, port = Server(folder / "app.log"), free_port()
        command = [sys.executable, "-m", "tests.browser.front", app.url, str(port), str(folder)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            until(lambda: _answers(port))
            yield port
            process.kill()
        app.kill()


def chosen_for(folder: Path, open_id: str) -> dict[str, str]:
    """What a Space's app finds in its environment."""
    return {
        "SYSTEM": "spaces",
        "SPACE_ID": "ada/demo",
        "SPACE_HOST": SPACE,
        "OAUTH_CLIENT_ID": "the-app",
        "OAUTH_CLIENT_SECRET": "s3cret",
        "OAUTH_SCOPES": "openid profile",
        "OPENID_PROVIDER_URL": open_id,
        "QLORA_DEMO_HOME": str(folder / "home"),
        "QLORA_DEMO_BUNDLED": str(folder),
        "QLORA_DEMO_PASSWORD": PASSWORD,
        "QLORA_DEMO_OPERATORS": "ada",
        "no_proxy": "*",
    }


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


@pytest.fixture
def page(browser: Browser, front: int) -> Iterator[Page]:
    """The hub's page, in a browser that blocks other sites' cookies."""
    names = f"--host-resolver-rules=MAP * 127.0.0.1:{front}"
    blocking = "--test-third-party-cookie-phaseout"
    strict = launched(browser.browser_type, "--ignore-certificate-errors", names, blocking)
    made = strict.new_page(viewport={"width": 1280, "height": 950})
    made.goto(f"https://{HUB}/spaces/ada/demo")
    yield made
    strict.close()


def test_who_signs_in_within_the_hub_s_frame_stays_signed_in(page: Page) -> None:
    framed = page.frame_locator("iframe")
    account = framed.locator("#account")
    expect(account).to_contain_text("You are a visitor")
    framed.get_by_label("Operators:").fill(PASSWORD)
    framed.get_by_role("button", name="Sign in", exact=True).click()
    expect(account).to_contain_text("You are signed in: an operator.")
    page.reload()
    expect(account).to_contain_text("You are signed in: an operator.")
    expect(framed.locator("#start")).to_be_enabled()


def test_who_signs_in_with_the_hub_goes_on_in_a_tab_of_its_own(page: Page) -> None:
    """Within the frame the hub's way back would find no cookie of before."""
    with page.context.expect_page() as opened:
        page.frame_locator("iframe").get_by_role("link", name="go on there").click()
    expect(opened.value.locator("#account")).to_contain_text("You are signed in as Ada: an operator.")
    assert opened.value.url.startswith(f"https://{SPACE}/")
