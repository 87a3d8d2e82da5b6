"""A script that pretends to be pages: it meets a stated refusal, and what people do beside it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qlora_demo.columns import parse, parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Limits, Settings
from qlora_demo.ui.door import _UNREAD
from tests.calls import Client, numbers, opened, values

pytestmark = pytest.mark.slow


class Crowded:
    """An app with a password and one finished run, and what its handlers take."""

    def __init__(self, settings: Settings) -> None:
        services = build_services(settings)
        run = services.runs.create(TrainConfig())
        run.adapter.mkdir()
        write_state(run.path, RunState(status="finished"))
        self.run, self.page = run.id, opened(services)
        self.url = str(self.page.local_url)

    def call(self, name: str, **given: Any) -> tuple[int, list[Any]]:
        """A handler's number and its values."""
        number = numbers(self.page, name)[0]
        return number, values(self.page.fns[number], **given)


Make = Callable[..., Crowded]


@pytest.fixture
def crowded(tmp_path: Any) -> Iterator[Make]:
    made: list[Crowded] = []

    def make(**limits: int) -> Crowded:
        made.append(Crowded(Settings(tmp_path, password="correct horse", limits=Limits(**limits))))
        return made[-1]

    yield make
    for one in made:
        one.page.close()


def test_a_page_that_reads_nothing_may_soon_call_no_more(crowded: Make) -> None:
    app = crowded()
    number, data = app.call("place", chat_run=app.run, columns=["<" * 1000])
    with Client(app.url) as script, Client(app.url) as person:
        answers = [script.join(number, data) for _ in range(_UNREAD * 3)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert (
            refused and "calls and messages wait for this page; read them, or reload it" in refused[-1].json()["detail"]
        )
        assert person.call(number, data)["success"]
        assert len(answers) - len(refused) <= _UNREAD, "none is let in for its messages coming late"


def test_calls_of_a_page_are_counted_whatever_they_are(crowded: Make) -> None:
    app = crowded(page_calls=3)
    number, data = app.call("where")
    with Client(app.url) as script, Client(app.url) as person:
        for _ in range(3):
            assert script.call(number, data)["success"]
        refused = script.join(number, data)
        assert refused.status_code == 429
        assert "calls of this page (QLORA_DEMO_PAGE_CALLS): 3 in a minute is the most" in refused.json()["detail"]
        assert person.call(number, data)["success"]


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ({"address_pages": 2}, "pages opened from your address (QLORA_DEMO_ADDRESS_PAGES): 2 in a minute"),
        ({"address_calls": 2}, "calls from your address (QLORA_DEMO_ADDRESS_CALLS): 2 in a minute"),
    ],
)
def test_many_pages_of_one_address_are_counted_together(crowded: Make, limit: dict[str, int], told: str) -> None:
    app = crowded(**limit)
    number, data = app.call("where")
    for _ in range(2):
        with Client(app.url) as script:
            assert script.call(number, data)["success"]
    with Client(app.url) as script:
        refused = script.join(number, data)
    assert refused.status_code == 429 and told in refused.json()["detail"]


def test_a_page_that_the_server_has_forgotten_goes_on(crowded: Make) -> None:
    app = crowded(open_pages=2)
    number, data = app.call("place", chat_run=app.run, columns=["base", "adapter"])
    with Client(app.url) as person:
        person.open(app.page)
        for _ in range(3):
            with Client(app.url) as other:
                other.open(app.page)
        ended = person.call(number, data)
    assert ended["success"], ended


def test_a_visitor_s_call_is_no_larger_than_a_prompt_needs(crowded: Make) -> None:
    app = crowded()
    number, data = app.call("place", chat_run=app.run, columns=["x" * 100_000])
    with Client(app.url) as script:
        assert script.join(number, data).status_code == 413


@pytest.mark.parametrize("texts", [["<" * 100_000], ["base:" + "x" * 100_000], ["base" + " " * 50_000] * 2])
def test_a_message_repeats_no_more_than_a_line_of_what_was_sent(texts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_all(texts, "run") if len(texts) > 1 else parse(texts[0], "run")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "path", ["/monitoring", "/monitoring/", "/monitoring/summary", "/monitoring/x/gradio_api/upload"]
)
def test_gradio_s_monitoring_is_closed_to_everyone(crowded: Make, path: str) -> None:
    app = crowded()
    with Client(app.url) as script:
        assert script.http.get(path).status_code == script.http.post(path).status_code == 404
        assert script.sign_in("correct horse").status_code == 303
        assert script.http.get(path).status_code == 404


@pytest.mark.parametrize(
    ("space", "framed"),
    [("", "frame-ancestors 'self'"), ("me/demo", "frame-ancestors 'self' https://huggingface.co")],
)
def test_no_other_site_may_show_the_page_in_a_frame(tmp_path: Any, space: str, framed: str) -> None:
    app = Crowded(Settings(tmp_path, password="correct horse", space=space))
    with Client(app.url) as client:
        for path in ("/", "/config", "/gradio_api/nothing"):
            assert client.http.get(path).headers["content-security-policy"].startswith(framed)
    app.page.close()
