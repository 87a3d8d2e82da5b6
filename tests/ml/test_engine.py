"""The engine: columns in turn on one thread, stopped, failing, sharing the device, without losing the app."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings
from qlora_demo.errors import DataError, DeviceBusy, OutOfMemory, RequestError
from qlora_demo.gpu import Lease
from qlora_demo.ml.generate import stream
from qlora_demo.ml.turns import turn
from qlora_demo.records import AnswerRequest, ExportKind, ExportRequest, Message
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from tests.ml.test_variants import finished_run

SETTINGS = GenerationSettings(max_new_tokens=12)
ASKED: tuple[Message, ...] = ({"role": "user", "content": "hello"},)
NAMES = ("base", "adapter", "merged")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """One app for all tests here; those that need it empty release it first."""
    made = build_services(Settings(tmp_path_factory.mktemp("engine")))
    yield made
    made.engine.release()


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's answers do not end; nothing here depends on their length."""
    monkeypatch.setattr("qlora_demo.ml.evaluate.ANSWER_TOKENS", 12)


@pytest.fixture(scope="module")
def run(services: Services, tiny_model: Path) -> Run:
    return run_with_rows(services, tiny_model, "qlora")


def run_with_rows(services: Services, model: Path, method: str) -> Run:
    run = finished_run(services, model, method)
    (run.path / "heldout").mkdir()
    line = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "{\\"n\\": 1}"}]}\n'
    for split in ("test", "hard"):
        (run.path / "heldout" / f"{split}.jsonl").write_text(line * 3, "utf-8")
    return run


def ask(run: Run, *, settings: GenerationSettings = SETTINGS, asked: tuple[Message, ...] = ASKED) -> AnswerRequest:
    return AnswerRequest(parse_all(NAMES, run.id), dict.fromkeys(NAMES, asked), settings)


def merging(run: Run, folder: Path, what: ExportKind = "merged") -> ExportRequest:
    return ExportRequest(run.id, what, None, folder / "merged")


def test_every_column_answers_with_its_proof(services: Services, run: Run) -> None:
    *_, answers = services.engine().answer(ask(run), Halt())
    assert [answer.column for answer in answers] == list(NAMES)
    assert all(answer.finish and answer.proof and answer.model_bytes for answer in answers)
    assert len({answer.proof.fingerprint for answer in answers if answer.proof}) == 3
    assert services.lease.holder() == f"chat of run {run.id}"
    services.engine().release()
    assert services.lease.holder() == ""
    assert services.engine().resident() == ()


def test_stop_keeps_what_was_said(services: Services, run: Run) -> None:
    stop = Halt()
    answers = services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=200)), stop)
    next(answers)
    stop.set()
    *_, last = answers
    assert {answer.finish for answer in last} <= {"stopped", "stop"}
    assert all(0 < answer.timing.new_tokens < 200 for answer in last)


def test_leaving_early_stops_the_work(services: Services, run: Run) -> None:
    stop = Halt()
    answers: Any = services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=200)), stop)
    next(answers)
    answers.close()
    assert stop.is_set()
    *_, again = services.engine().answer(ask(run), Halt())
    assert all(answer.finish for answer in again)


def test_a_prompt_that_is_too_long_is_told_in_its_column(services: Services, run: Run) -> None:
    long: tuple[Message, ...] = ({"role": "user", "content": "x" * 300},)
    *_, answers = services.engine().answer(ask(run, asked=long), Halt())
    assert all("exceed the model's context of 256" in answer.error for answer in answers)


def test_training_elsewhere_keeps_chat_off_the_device(services: Services, run: Run) -> None:
    services.engine().release()
    held = Lease(services.settings.home).acquire("training", "somewhere")
    with pytest.raises(DeviceBusy, match="held by training somewhere"):
        list(services.engine().answer(ask(run), Halt()))
    held.release()
    assert list(services.engine().answer(ask(run), Halt()))


def test_a_gpu_that_gives_nothing_back_is_let_go_of_all_the_same(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(services.engine().answer(ask(run), Halt()))

    def lost() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr("qlora_demo.ml.variants.give_back", lost)
    with pytest.raises(RuntimeError, match="device-side assert"):
        services.engine().release()
    assert (services.lease.holder(), services.engine().resident()) == ("", ())


@pytest.mark.usefixtures("unusable_gpu")
def test_a_gpu_that_torch_cannot_use_is_told_and_no_model_answers_on_the_processor(
    services: Services, run: Run
) -> None:
    services.engine().release()
    with pytest.raises(RequestError, match=r"^device: driver 470\.1 lists NVIDIA T4, and torch .* cannot use it"):
        list(services.engine().answer(ask(run), Halt()))
    assert services.lease.holder() == ""


ON_CPU = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes.")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("injected"), ON_CPU], ids=["gpu", "cpu"])
def test_out_of_memory_while_loading_frees_what_it_took(
    services: Services, run: Run, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: Any) -> Any:
        raise error

    engine = services.engine()
    engine.release()
    with monkeypatch.context() as patch:
        patch.setattr("qlora_demo.ml.variants.load_merged", no_room)
        with pytest.raises(OutOfMemory, match="no room to load base, adapter, merged; choose fewer columns"):
            list(engine.answer(ask(run), Halt()))
        assert engine.resident() == ()
        assert services.lease.holder() == ""
    assert list(engine.answer(ask(run), Halt()))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("injected"), ON_CPU], ids=["gpu", "cpu"])
def test_out_of_memory_in_one_column_leaves_the_others_talking(
    services: Services, run: Run, error: RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:

    def failing(model: Any, tokenizer: Any, conversation: Any, settings: Any, activate: Any, *, fast: Any) -> Any:
        if type(model).__name__.startswith("Peft"):
            raise error
        yield from stream(model, tokenizer, conversation, settings, activate, fast=fast)

    monkeypatch.setattr("qlora_demo.ml.turns.stream", failing)
    *_, answers = services.engine().answer(ask(run), Halt())
    assert {answer.column for answer in answers if answer.error} == {"adapter"}
    assert all(answer.finish for answer in answers if not answer.error)


def test_evaluate_scores_every_column_on_every_split(services: Services, run: Run) -> None:
    columns = parse_all(["base", "adapter"], run.id)
    *_, last = services.engine().evaluate(run.id, columns, 2, Halt())
    assert last.progress.fraction == 1
    assert list(last.result["splits"]) == ["test", "hard"]
    assert last.result["variants"] == last.result["splits"]["test"]
    for figures in last.result["variants"].values():
        assert figures["rows"] == 2
        assert {"loss", "perplexity", "token_accuracy", "exact_match", "valid_json", "fields"} <= set(figures)
    assert last.result["weights"] == {"base": "bf16, the model before training", "adapter": "nf4, 4-bit base + LoRA"}
    [first, _] = last.result["rows"]["hard"]
    assert (first["prompt"], first["reference"]) == ("q", '{"n": 1}')
    assert set(first["answers"]) == {"base", "adapter"}


def test_a_row_that_is_longer_than_the_model_s_context_is_left_out_and_no_other(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    run = run_with_rows(services, tiny_model, "qlora")
    file = run.path / "heldout" / "test.jsonl"
    rows = len(file.read_text("utf-8").splitlines())
    long = {"messages": [{"role": "user", "content": "x" * 300}, {"role": "assistant", "content": "y"}]}
    useless = json.dumps(long) + "\n" + json.dumps({"messages": long["messages"][1:]}) + "\n"
    file.write_text(useless + file.read_text("utf-8"), "utf-8")
    *_, last = services.engine().evaluate(run.id, parse_all(["adapter"], run.id), None, Halt())
    assert last.result["variants"]["adapter"]["rows"] == len(last.result["rows"]["test"]) == rows
    assert last.result["left_out"] == 2
    *_, last = services.engine().fidelity(run.id, None, Halt())
    assert (last.result["merges"]["merged:dequantized"]["rows"], last.result["left_out"]) == (rows, 2)
    *_, last = services.engine().export(ExportRequest(run.id, "merged", None, tmp_path / "merged"), Halt())
    assert last.result["verified"]
    assert json.loads((tmp_path / "merged" / "tokenizer.json").read_text("utf-8"))["padding"] is None
    file.with_name("hard.jsonl").write_text(useless, "utf-8")
    *_, last = services.engine().evaluate(run.id, parse_all(["adapter"], run.id), None, Halt())
    assert (list(last.result["splits"]), last.result["left_out"]) == (["test"], 4)
    file.write_text(useless, "utf-8")
    with pytest.raises(DataError, match="none of 2 rows asks something within the model's context"):
        list(services.engine().fidelity(run.id, None, Halt()))


def test_a_stopped_evaluation_keeps_what_it_has(services: Services, run: Run) -> None:
    halt = Halt()
    result: dict[str, Any] = {}
    for step in services.engine().evaluate(run.id, parse_all(["base", "adapter"], run.id), None, halt):
        result = step.result or result
        if step.result:
            halt.set()
    assert list(result["splits"]) == ["test"]
    assert list(result["splits"]["test"]) == ["base"]


def test_fidelity_measures_both_merges_against_the_adapter(services: Services, run: Run) -> None:
    *_, last = services.engine().fidelity(run.id, 3, Halt())
    near, far = (last.result["merges"][f"merged:{onto}"] for onto in ("dequantized", "original"))
    assert near["kl_mean"] < far["kl_mean"] / 3
    assert near["rows"] == 3
    assert {"kl_worst", "top1_agreement", "loss_change", "exact_match_change", "identical_answers"} <= set(far)
    assert last.result["sentence"].startswith("Ship the merge onto the dequantized base")


def test_one_column_is_stopped_and_the_others_go_on(services: Services, run: Run) -> None:
    halt = Halt()
    halt.set("adapter")
    *_, answers = services.engine().answer(ask(run), halt)
    assert {answer.column: answer.finish == "stopped" for answer in answers} == {
        "base": False,
        "adapter": True,
        "merged": False,
    }


def test_one_after_the_other_says_the_same_in_another_order(
    services: Services, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def watched(answer: Any, column: Any) -> Any:
        order.append(answer.column)
        return turn(answer, column)

    *_, in_turn = services.engine().answer(ask(run), Halt())
    monkeypatch.setattr("qlora_demo.ml.turns.turn", watched)
    *_, after = services.engine().answer(replace(ask(run), order="one after the other"), Halt())
    assert [answer.text for answer in after] == [answer.text for answer in in_turn]
    assert [name for name, _ in itertools.groupby(order)] == list(NAMES)


def test_an_answer_holds_the_time_of_each_of_its_passes(services: Services, run: Run) -> None:
    *_, answers = services.engine().answer(ask(run), Halt())
    for answer in answers:
        timing = answer.timing
        assert len(timing.passes) == timing.new_tokens - 1 == len(answer.token_ids) - 1
        assert sum(timing.passes) == pytest.approx(timing.decode_seconds)
        assert answer.bandwidth > 0 and answer.bandwidth_share is not None


def test_first_use_costs_stand_apart(services: Services, run: Run) -> None:
    services.engine().release()
    list(services.engine().load(parse_all(NAMES, run.id), Halt()))
    assert all(one.load_seconds > 0 and one.warm_up_seconds > 0 for one in services.engine().resident())


def test_sampling_with_one_seed_draws_the_same_from_the_same_logits(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "lora", scale=0.0)
    drawn = ask(run, settings=GenerationSettings(max_new_tokens=12, temperature=1.5, seed=7))
    *_, answers = services.engine().answer(drawn, Halt())
    assert len({answer.token_ids for answer in answers}) == 1
    *_, other = services.engine().answer(replace(drawn, settings=drawn.settings.changed(seed=8)), Halt())
    assert other[0].token_ids != answers[0].token_ids


def test_loading_can_be_stopped_between_two_models(services: Services, run: Run) -> None:
    services.engine().release()
    stop = Halt()
    steps = services.engine().load(parse_all(NAMES, run.id), stop)
    assert next(steps).text == "loading Merged"
    stop.set()
    assert [step.text for step in steps] in ([], ["loading Base + adapter"])
    assert services.engine().resident() == ()
    list(services.engine().load(parse_all(NAMES, run.id), Halt()))
    assert len(services.engine().resident()) == 3


def test_an_evaluation_and_a_merge_that_are_stopped_while_they_load_just_end(
    services: Services, run: Run, tmp_path: Path
) -> None:
    engine, evaluating, exporting = services.engine(), Halt(), Halt()
    evaluated = engine.evaluate(run.id, parse_all(NAMES, run.id), 2, evaluating)
    exported = engine.export(merging(run, tmp_path), exporting)
    for steps, halt in ((evaluated, evaluating), (exported, exporting)):
        engine.release()
        next(steps)
        halt.set()
        assert [step for step in steps if step.result] == []


def test_every_column_has_each_place_in_the_turn(services: Services, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def watched(answer: Any, column: Any) -> Any:
        order.append(answer.column)
        return turn(answer, column)

    monkeypatch.setattr("qlora_demo.ml.turns.turn", watched)
    list(services.engine().answer(ask(run, settings=GenerationSettings(max_new_tokens=3)), Halt()))
    rounds = [order[at : at + 3] for at in range(0, 9, 3)]
    assert [first for first, *_ in rounds] == list(NAMES)
    assert all(sorted(one) == sorted(NAMES) for one in rounds)
