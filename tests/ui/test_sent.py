"""Values of a wrong kind, as no page of the app's own sends them, are refused in words and leave no traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qlora_demo.compose import build_services
from qlora_demo.config import TrainConfig
from qlora_demo.records import RunState
from qlora_demo.runs import write_state
from qlora_demo.settings import Settings
from tests.calls import Client, numbers, opened, values

KIND = "request: a value is of a kind that its field does not take; reload the page and choose again"
NAN, TEXTS = float("nan"), "is no list of texts"
WRONG = [
    ("choose_run", {"chat_run": -1}, "Finished run: -1 is no text"),
    ("choose_run", {"chat_run": ["<b>&lt;"]}, "Finished run: ['&lt;b>&amp;lt;'] is no text"),
    ("choose_run", {"columns": -1}, f"Columns (one to four): -1 {TEXTS}"),
    ("place", {"columns": [[1]]}, f"Columns (one to four): [[1]] {TEXTS}"),
    ("ask", {"columns": None, "prompt": "hi"}, "variants: 0 columns are not allowed; name 1 to 4"),
    ("columns", {"judge_run": ["x"]}, "Finished run: ['x'] is no text"),
    ("evaluate", {"judge_columns": -1}, f"Columns (one to four): -1 {TEXTS}"),
    ("refresh", {"overlay": {"a": 1}}, "Lay side by side (up to six runs): {'a': 1} is no list"),
    ("lay_side_by_side", {"overlay": None}, ""),
    ("differences", {"left": []}, "Left: [] is no text"),
    ("poll", {"rows_page": "x"}, KIND),
    ("poll", {"which": "some"}, "is not in the list of choices"),
    ("poll", {"rows_page": 0, "prompts_page": -7}, ""),
    ("_form_of", {"benchmark_kind": None}, ""),
    ("ledger", {"ledger_shape": "half \ud800"}, "half ?"),
    ("size", {"explain_r": NAN}, KIND),
    ("size", {"explain_r": float("inf")}, KIND),
    ("size", {"explain_r": None}, KIND),
    ("ledger", {"ledger_card": None}, ""),
]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, str]]:
    """A page, and its finished run."""
    services = build_services(Settings(tmp_path_factory.mktemp("home")))
    run = services.runs.create(TrainConfig())
    run.adapter.mkdir()
    write_state(run.path, RunState("finished"))
    page = opened(services)
    yield page, run.id
    page.close()


@pytest.mark.parametrize(("name", "given", "told"), WRONG)
def test_what_no_page_sends_is_refused_in_words(
    app: tuple[Any, str], name: str, given: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, run = app
    printed: list[None] = []
    monkeypatch.setattr("traceback.print_exc", lambda *_: printed.append(None))
    number = next(one for one in numbers(page, name) if reads(page.fns[one], *given))
    with Client(str(page.local_url)) as client:
        data = values(page.fns[number], **{"chat_run": run, "judge_run": run} | given)
        body = json.dumps({"fn_index": number, "data": data, "session_hash": client.session})
        client.http.post("/gradio_api/queue/join", content=body, headers={"content-type": "application/json"})
        *_, ended = messages = list(client.results())
    said = [one["log"] for one in messages if one["msg"] == "log"] + [str(ended["output"].get("error", ""))]
    assert told in "".join(said) and (told or ended["success"]), said
    assert printed == []


def reads(handler: Any, *names: str) -> bool:
    """Whether a handler takes what these components hold."""
    found = {str(part.elem_id).replace("-", "_") for part in handler.inputs}
    return found >= set(names)
