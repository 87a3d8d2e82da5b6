"""The engine: columns in turn on one thread, stopped, failing, sharing the device, without losing the app."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_demo.config import GenerationSettings
from qlora_demo.errors import DeviceBusy, OutOfMemory, RequestError
from qlora_demo.gpu import Lease
from qlora_demo.ml.engine import Worker, _turn
from qlora_demo.ml.generate import stream
from qlora_demo.records import AnswerRequest, Message
from qlora_demo.runs import Run
from qlora_demo.services import Services
from tests.ml.test_variants import finished_run

SETTINGS = GenerationSettings(max_new_tokens=12)
ASKED: tuple[Message, ...] = ({"role": "user", "content": "hello"},)
NAMES = ("base", "adapter", "merged")


@pytest.fixture
def run(services: Services, tiny_model: Path) -> Run:
    run = finished_run(services, tiny_model, "qlora")
    (run.path / "heldout").mkdir()
    line = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "{\\"n\\": 1}"}]}\n'
    for split in ("test", "hard"):
        (run.path / "heldout" / f"{split}.jsonl").write_text(line * 3, "utf-8")
    return run


def ask(run: Run, *, settings: GenerationSettings = SETTINGS, asked: tuple[Message, ...] = ASKED) -> AnswerRequest:
    return AnswerRequest(run.id, dict.fromkeys(NAMES, asked), settings)


def test_every_column_answers_with_its_proof(services: Services, run: Run) -> None:
    *_, answers = services.engine().answer(ask(run), threading.Event())
    assert [answer.variant for answer in answers] == list(NAMES)
    assert all(answer.finish and answer.proof and answer.model_bytes for answer in answers)
    assert len({answer.proof.fingerprint for answer in answers if answer.proof}) == 3
    assert services.lease.holder() == f"chat of run {run.id}"
    services.engine().release()
    assert services.lease.holder() == ""
    assert services.engine().resident() == ()


def test_stop_keeps_what_was_said(services: Services, run: Run) -> None:
    stop = threading.Event()
    answers = services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=200)), stop)
    next(answers)
    stop.set()
    *_, last = answers
    assert {answer.finish for answer in last} <= {"stopped", "stop"}
    assert all(0 < answer.timing.new_tokens < 200 for answer in last)


def test_leaving_early_stops_the_work(services: Services, run: Run) -> None:
    stop = threading.Event()
    answers: Any = services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=200)), stop)
    next(answers)
    answers.close()
    assert stop.is_set()
    *_, again = services.engine().answer(ask(run), threading.Event())
    assert all(answer.finish for answer in again)


def test_a_prompt_that_is_too_long_is_told_in_its_column(services: Services, run: Run) -> None:
    long: tuple[Message, ...] = ({"role": "user", "content": "x" * 300},)
    *_, answers = services.engine().answer(ask(run, asked=long), threading.Event())
    assert all("exceed the model's context of 256" in answer.error for answer in answers)


def test_training_elsewhere_keeps_chat_off_the_device(services: Services, run: Run) -> None:
    held = Lease(services.settings.home).acquire("training", "somewhere")
    with pytest.raises(DeviceBusy, match="held by training somewhere"):
        list(services.engine().answer(ask(run), threading.Event()))
    held.release()
    assert list(services.engine().answer(ask(run), threading.Event()))


def test_out_of_memory_while_loading_frees_what_it_took(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    engine = services.engine()
    with monkeypatch.context() as patch:
        patch.setattr("qlora_demo.ml.variants.load_merged", no_room)
        with pytest.raises(OutOfMemory, match="no room to load base, adapter, merged; choose fewer columns"):
            list(engine.answer(ask(run), threading.Event()))
        assert engine.resident() == ()
        assert services.lease.holder() == ""
    assert list(engine.answer(ask(run), threading.Event()))


def test_out_of_memory_in_one_column_leaves_the_others_talking(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:

    def failing(model: Any, tokenizer: Any, conversation: Any, settings: Any, activate: Any) -> Any:
        if type(model).__name__.startswith("Peft"):
            raise torch.OutOfMemoryError("injected")
        yield from stream(model, tokenizer, conversation, settings, activate)

    monkeypatch.setattr("qlora_demo.ml.engine.stream", failing)
    *_, answers = services.engine().answer(ask(run), threading.Event())
    assert {answer.variant for answer in answers if answer.error} == {"adapter"}
    assert all(answer.finish for answer in answers if not answer.error)


def test_evaluate_scores_every_variant_on_every_split(services: Services, run: Run) -> None:
    result = services.engine().evaluate(run.id, ["base", "adapter"], 2, lambda _: None)
    assert list(result["splits"]) == ["test", "hard"]
    assert result["variants"] == result["splits"]["test"]
    for figures in result["variants"].values():
        assert figures["rows"] == 2
        assert {"loss", "perplexity", "token_accuracy", "exact_match", "valid_json", "fields"} <= set(figures)


def test_merge_saves_a_model_that_loads_plainly(services: Services, run: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = services.engine().merge(run.id, None, tmp_path / "merged", lambda _: None)
    assert result["onto"] == "dequantized"
    assert result["fidelity"]["kl_mean"] < 0.01
    loaded = AutoModelForCausalLM.from_pretrained(result["path"])
    assert loaded.dtype == torch.bfloat16
    with pytest.raises(RequestError, match="exists already"):
        services.engine().merge(run.id, None, tmp_path / "merged", lambda _: None)


def test_the_worker_hands_errors_to_the_thread_that_asked() -> None:
    worker = Worker()

    def fail() -> None:
        raise RequestError("no")

    with pytest.raises(RequestError, match="no"):
        worker.call(fail)
    assert worker.call(lambda: threading.current_thread().name) == "models"


def test_loading_can_be_stopped_between_two_models(services: Services, run: Run) -> None:
    stop = threading.Event()
    steps = services.engine().load(run.id, NAMES, stop)
    assert next(steps).text == "loading 4-bit + adapter"
    stop.set()
    assert [step.text for step in steps] in ([], ["loading Base"])
    assert len(services.engine().resident()) < 3
    list(services.engine().load(run.id, NAMES, threading.Event()))
    assert len(services.engine().resident()) == 3


def test_the_worker_waits_until_an_item_is_dealt_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_demo.ml.engine._PATIENCE_SECONDS", 10)
    events: list[str] = []

    def make() -> Iterator[int]:
        for number in range(3):
            events.append(f"make {number}")
            yield number

    for item in Worker().iterate(make, threading.Event()):
        time.sleep(0.02)
        events.append(f"use {item}")
    assert events == [f"{what} {number}" for number in range(3) for what in ("make", "use")]


def test_every_column_has_each_place_in_the_turn(services: Services, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def watched(answer: Any, column: Any) -> Any:
        order.append(answer.variant)
        return _turn(answer, column)

    monkeypatch.setattr("qlora_demo.ml.engine._turn", watched)
    list(services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=3)), threading.Event()))
    rounds = [order[at : at + 3] for at in range(0, 9, 3)]
    assert [first for first, *_ in rounds] == list(NAMES)
    assert all(sorted(one) == sorted(NAMES) for one in rounds)
