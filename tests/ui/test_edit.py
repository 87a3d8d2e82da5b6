"""An edit of a prompt, as requests make it that no page made."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from qlora_demo.services import Services
from tests.calls import Client, numbers, opened, values

pytestmark = pytest.mark.slow

SECRET = "what somebody sent"
WRONG: list[Any] = [
    *(None, SECRET, 3, [], {}, {"value": SECRET}, {"index": 0}, {"index": 0, "value": None}),
    *({"index": index, "value": SECRET} for index in (None, "0", "", [], [SECRET], {"a": 1}, True, -1, 0.5, [[0]])),
]


def test_what_names_no_message_is_refused_plainly(
    services: Services, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    printed: list[str] = []
    monkeypatch.setattr(traceback, "print_exc", lambda *_, **__: printed.append(traceback.format_exc()))
    page = opened(services)
    number = numbers(page, "edit")[0]
    with Client(str(page.local_url)) as client:

        def edit(data: Any) -> list[str]:
            more = {"event_data": data, "trigger_id": page.fns[number].targets[0][0]}
            told: list[str] = client.call(number, values(page.fns[number]), **more)["told"]
            return told

        refused = "edit: the request names no message and its new text; edit a prompt on the page"
        assert [edit(data) for data in WRONG] == [[refused]] * len(WRONG)
        for data in ({"index": 0, "value": "words"}, {"index": [0, 0], "value": "words", "previous_value": ""}):
            assert edit(data) == ["run: none is finished yet; train one on the Train tab"]
    page.close()
    assert printed == [] and SECRET not in caplog.text
