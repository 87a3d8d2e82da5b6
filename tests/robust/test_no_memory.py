"""Memory that ends at any moment: the app lives, what was taken is given back, the message says what would help.

Loading and one column of several are in `tests/ml/test_engine.py`, training in `tests/ml/test_recovery.py`.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from qlora_demo.columns import parse_all
from qlora_demo.config import GenerationSettings
from qlora_demo.errors import OutOfMemory
from qlora_demo.ml import export, judge
from qlora_demo.records import Answer, AnswerRequest, ExportRequest, Message
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from tests.ml.test_variants import finished_run

NAMES = ("base", "adapter")


@pytest.fixture
def run(services: Services, tiny_model: Path) -> Run:
    run = finished_run(services, tiny_model, "qlora")
    (run.path / "heldout").mkdir()
    line = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    (run.path / "heldout" / "test.jsonl").write_text(line * 2, "utf-8")
    return run


def ask(services: Services, run: Run) -> tuple[Answer, ...]:
    hello: tuple[Message, ...] = ({"role": "user", "content": "hello"},)
    turns = dict.fromkeys(NAMES, hello)
    request = AnswerRequest(parse_all(NAMES, run.id), turns, GenerationSettings(max_new_tokens=4))
    *_, answers = services.engine().answer(request, Halt())
    return answers


@pytest.mark.parametrize("at", [1, 3], ids=["prefill", "decode"])
def test_an_answer_that_finds_no_memory_says_so_and_the_next_one_comes(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = ask(services, run)
    forward, passes = LlamaForCausalLM.forward, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 2 * at:  # two columns take turns
            raise torch.OutOfMemoryError("injected")
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "forward", failing)
        answers = ask(services, run)
    [failed] = [answer for answer in answers if answer.error]
    assert failed.error == "device: out of memory; shorten the conversation or choose fewer columns"
    assert [answer.text for answer in ask(services, run)] == [answer.text for answer in whole]
    services.engine().release()
    assert services.lease.holder() == ""


def evaluate(services: Services, run: Run, _: Path) -> Iterator[Any]:
    return services.engine().evaluate(run.id, parse_all(NAMES, run.id), None, Halt())


def fidelity(services: Services, run: Run, _: Path) -> Iterator[Any]:
    return services.engine().fidelity(run.id, 2, Halt())


def merge(services: Services, run: Run, folder: Path) -> Iterator[Any]:
    return services.engine().export(ExportRequest(run.id, "merged", None, folder / "out"), Halt())


WORK: list[tuple[str, Callable[..., Iterator[Any]], Any, str]] = [
    ("evaluate", evaluate, judge, "evaluate"),
    ("compare merges", fidelity, judge, "divergences"),
    ("merge", merge, export, "load_merged"),
    ("merge", merge, export, "_verify"),
]


@pytest.mark.parametrize("case", WORK, ids=[f"{what}-{name}" for what, *_, name in WORK])
def test_work_that_finds_no_memory_gives_back_what_it_took(
    services: Services, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Any
) -> None:
    what, work, room, name = case
    models: list[weakref.ref[Any]] = []
    init = LlamaForCausalLM.__init__

    def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        models.append(weakref.ref(self))

    def failing(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "__init__", remembered)
        patch.setattr(room, name, failing)
        with pytest.raises(OutOfMemory, match=f"^device: no room to {what}; all models were freed: try again"):
            list(work(services, run, tmp_path))
    assert services.engine().resident() == ()
    assert services.lease.holder() == ""
    gc.collect()
    assert models and not [model for model in models if model() is not None]
    assert not (tmp_path / "out").exists()
    assert list(work(services, run, tmp_path))
