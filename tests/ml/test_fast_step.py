"""A captured step answers what the eager pass answers, or does not answer: tried on the CPU, where nothing captures."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_demo.columns import parse_all
from qlora_demo.config import GenerationSettings
from qlora_demo.ml import fast_step, load
from qlora_demo.ml.agreement import difference
from qlora_demo.ml.fast_step import FastPath, Run
from qlora_demo.ml.generate import decode, encode, stream
from qlora_demo.ml.layer_pass import Forward
from qlora_demo.ml.variants import Variants
from qlora_demo.records import AnswerRequest, GenerationChunk, Message
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from tests.ml.test_variants import finished_run

pytestmark = pytest.mark.slow

ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello, wörld"}]
OTHER: list[Message] = [{"role": "user", "content": "quite another and rather longer question, isn't it?"}]
SETTINGS = GenerationSettings(max_new_tokens=24)
READY = "static cache, rerun"


class Rerun:
    """Records a step where nothing captures: a replay runs it again, into the buffer of the first time."""

    name = READY

    def __init__(self, compiled: Callable[[Forward], Forward] | None = None) -> None:
        self.compiles = compiled is not None
        self.compile = compiled or (lambda forward: forward)
        self.replays = 0

    def capture(self, run: Run) -> Run:
        logits = run().clone()

        def replay() -> torch.Tensor:
            self.replays += 1
            return logits.copy_(run())

        return replay


class Broken(Rerun):
    """A step that computes something else than it recorded."""

    def __init__(self, spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.spoil = spoil

    def capture(self, run: Run) -> Run:
        return lambda: self.spoil(run())


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    return load.load_16bit(str(tiny_model))


@pytest.fixture(params=["bf16", "nf4 + adapter"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("plain" if request.param == "bf16" else "adapted")


def _assert_same(model: Any, tokenizer: Any, fast: FastPath, asked: list[Message]) -> None:
    """The step says what the eager pass says, to the first token where the eager pass itself has a tie in bf16."""
    inputs = encode(tokenizer, [asked])
    eager = list(decode(model, inputs, SETTINGS))
    stepped = list(decode(model, inputs, SETTINGS, fast=fast))
    assert torch.equal(eager[0].logits, stepped[0].logits)
    same = [left.tokens == right.tokens for left, right in zip(eager, stepped, strict=False)]
    shared = (same.index(False) + 1) if False in same else len(same)
    said = [torch.stack([step.logits for step in steps[:shared]]) for steps in (eager, stepped)]
    assert (difference(said[0], said[1], 0.05), {step.decode for step in stepped}) == ("", {READY})


def _chunks(model: Any, tokenizer: Any, fast: FastPath | None, asked: list[Message] = ASKED) -> list[GenerationChunk]:
    return list(stream(model, tokenizer, asked, SETTINGS, fast=fast))


def test_a_step_answers_the_eager_tokens_and_says_that_it_answered(model: Any, tokenizer: Any) -> None:
    recorder = Rerun()
    fast = FastPath(model, recorders=[recorder])
    assert fast.prepare() == READY
    recorder.replays = 0
    eager, stepped = _chunks(model, tokenizer, None), _chunks(model, tokenizer, fast)
    assert stepped[-1].token_ids == eager[-1].token_ids
    assert stepped[0].fingerprint == eager[0].fingerprint
    assert recorder.replays == len(stepped) - 1
    assert ({chunk.decode for chunk in stepped}, {chunk.decode for chunk in eager}) == ({READY}, {"eager"})


def test_an_answer_stopped_in_the_middle_leaves_nothing_to_the_next(model: Any, tokenizer: Any) -> None:
    fast = FastPath(model, recorders=[Rerun()])
    fast.prepare()
    expected = _chunks(model, tokenizer, None)[-1].token_ids
    with closing(stream(model, tokenizer, OTHER, SETTINGS, fast=fast)) as stopped:
        for _ in range(7):
            next(stopped)
    assert _chunks(model, tokenizer, fast)[-1].token_ids == expected
    _chunks(model, tokenizer, fast, OTHER)
    assert _chunks(model, tokenizer, fast)[-1].token_ids == expected


def test_the_states_of_shared_weights_have_steps_of_their_own_and_answer_in_turn(adapted: Any, tokenizer: Any) -> None:
    on = FastPath(adapted, recorders=[Rerun()])
    off = FastPath(adapted, adapted.disable_adapter, [Rerun()])
    assert (on.prepare(), off.prepare()) == (READY, READY)
    on_alone = _chunks(adapted, tokenizer, None)[-1].token_ids
    off_alone = list(stream(adapted, tokenizer, ASKED, SETTINGS, adapted.disable_adapter))[-1].token_ids
    both = zip(
        stream(adapted, tokenizer, ASKED, SETTINGS, fast=on),
        stream(adapted, tokenizer, ASKED, SETTINGS, adapted.disable_adapter, fast=off),
        strict=False,
    )
    *_, (last_on, last_off) = both
    shortest = min(len(last_on.token_ids), len(last_off.token_ids))
    assert on_alone != off_alone
    assert last_on.token_ids[:shortest] == on_alone[:shortest]
    assert last_off.token_ids[:shortest] == off_alone[:shortest]


def test_one_step_serves_one_answer_at_a_time(plain: Any, tokenizer: Any) -> None:
    fast = FastPath(plain, recorders=[Rerun()])
    fast.prepare()
    first = stream(plain, tokenizer, ASKED, SETTINGS, fast=fast)
    assert next(first).decode == READY
    second = _chunks(plain, tokenizer, fast, OTHER)
    assert second[0].decode == "eager (the compiled step is answering another column)"
    assert second[-1].token_ids == _chunks(plain, tokenizer, None, OTHER)[-1].token_ids
    assert list(first)[-1].token_ids == _chunks(plain, tokenizer, None)[-1].token_ids
    assert _chunks(plain, tokenizer, fast)[0].decode == READY


def test_a_longer_context_is_answered_eagerly_until_a_longer_step_is_built(
    plain: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_step, "START_TOKENS", 64)
    fast = FastPath(plain, recorders=[Rerun()])
    assert fast.prepare(64) == READY
    asked: list[Message] = [{"role": "user", "content": "x" * 60}]
    eager = _chunks(plain, tokenizer, fast, asked)
    assert eager[0].decode == "eager (the compiled step for 128 tokens is being built)"
    assert _chunks(plain, tokenizer, fast, [{"role": "user", "content": "x"}])[0].decode == READY
    while fast.piece():
        pass
    _assert_same(plain, tokenizer, fast, asked)


def test_building_takes_one_piece_at_a_time_and_answers_are_eager_meanwhile(model: Any, tokenizer: Any) -> None:
    fast = FastPath(model, recorders=[Rerun(lambda forward: forward)])
    expected = _chunks(model, tokenizer, None)[-1].token_ids
    answers = []
    while fast.piece():
        answers.append(_chunks(model, tokenizer, fast)[-1])
    assert {answer.token_ids for answer in answers} == {expected}
    eager = {answer.decode for answer in answers[:-1]}
    assert eager == {"eager (the compiled step for 512 tokens is being built)"}
    assert (answers[-1].decode, len(answers)) == (READY, 1 + 2 + 1 + 1 + 1)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda logits: logits + torch.randn_like(logits), r"logits differ from the eager pass's by \d+\.\d% of"),
        (lambda logits: logits * torch.nan, "logits differ from the eager pass's by nan% of"),
    ],
)
def test_a_step_that_computes_something_else_is_not_used(
    spoil: Callable[[torch.Tensor], torch.Tensor], reason: str, plain: Any, tokenizer: Any
) -> None:
    fast = FastPath(plain, recorders=[Broken(spoil)])
    name = fast.prepare()
    assert re.search(rf"^eager \(the compiled step's .*{reason}", name), name
    assert fast.piece() is False
    answer = _chunks(plain, tokenizer, fast)[-1]
    assert answer.decode == name
    assert answer.token_ids == _chunks(plain, tokenizer, None)[-1].token_ids


def test_a_step_captured_in_the_wrong_state_is_not_used(adapted: Any) -> None:
    inner = adapted.get_base_model()

    class WithoutAdapter(Rerun):
        def capture(self, run: Run) -> Run:
            def off() -> torch.Tensor:
                with adapted.disable_adapter():
                    return run()

            return off

    assert "differ from the eager pass" in FastPath(adapted, recorders=[WithoutAdapter()]).prepare()
    assert not any("forward" in vars(layer) for layer in inner.get_decoder().layers)


def test_what_the_compiler_raises_is_kept_as_the_reason_and_the_layers_are_as_before(
    plain: Any, tokenizer: Any
) -> None:
    def explode(forward: Forward) -> Forward:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("no\nsuch kernel")

        return compiled

    fast = FastPath(plain, recorders=[Rerun(explode)])
    assert fast.prepare() == "eager (the step could not be built: RuntimeError: no such kernel)"
    assert not any("forward" in vars(layer) for layer in plain.get_decoder().layers)
    assert _chunks(plain, tokenizer, fast)[-1].token_ids == _chunks(plain, tokenizer, None)[-1].token_ids


def test_where_compiled_layers_fail_the_plain_ones_are_captured_and_the_name_says_why(
    plain: Any, tokenizer: Any
) -> None:
    fast = FastPath(plain, recorders=[Broken(lambda logits: logits * 1.2), Rerun()])
    name = fast.prepare()
    assert re.search(rf"^{READY} \(not compiled: the compiled step's logits differ .* by \d+\.\d% of", name), name
    assert _chunks(plain, tokenizer, fast)[-1].decode == name
    fast.want(1024)
    while fast.piece():
        pass
    assert fast.prepare(1024) == name


def test_a_gpu_s_layers_are_compiled_first_and_then_as_they_are() -> None:
    first, second = fast_step.recorders_for(torch.device("cuda"))
    assert (first.name, second.name) == ("compiled step, CUDA graph", "CUDA graph")
    assert second.compile(len) is len
    assert first.compile(len) is not len
    assert fast_step.recorders_for(torch.device("cpu")) == ()


def test_layers_are_traced_whole_and_once_for_all(model: Any, tokenizer: Any) -> None:
    """What the compiler is given on a GPU, run here without code generation: no graph breaks, no recompilation."""
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def trace(forward: Forward) -> Forward:
        compiled: Forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=count)
        return compiled

    fast = FastPath(model, recorders=[Rerun(trace)])
    assert fast.prepare() == READY
    assert len(graphs) == 1
    assert _chunks(model, tokenizer, fast)[-1].token_ids == _chunks(model, tokenizer, None)[-1].token_ids
    torch._dynamo.reset()


def test_without_room_for_its_cache_no_step_is_built(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_step, "_ROOM", 1e-9)
    reason = FastPath(plain, recorders=[Rerun()]).prepare(1 << 20)
    assert reason.startswith("eager (a static cache of 512 tokens takes 128 KiB and ")


def test_a_context_whose_cache_has_no_room_leaves_shorter_ones_their_step(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room = lambda model, bucket: "no room" if bucket > 1024 else ""  # noqa: E731
    monkeypatch.setattr(fast_step, "_no_room", no_room)
    fast = FastPath(plain, recorders=[Rerun()])
    assert fast.prepare(4096) == "eager (no room)"
    assert (fast.prepare(100), fast.prepare(1000), fast.prepare(2000)) == (READY, READY, "eager (no room)")
    assert fast.route(1, 100).name == READY


def test_a_batch_and_a_device_without_cuda_are_answered_eagerly_and_say_so(plain: Any, tokenizer: Any) -> None:
    fast = FastPath(plain, recorders=[Rerun()])
    fast.prepare()
    inputs = encode(tokenizer, [ASKED, OTHER])
    assert next(decode(plain, inputs, SETTINGS, nullcontext, fast)).decode == "eager (2 rows at once)"
    assert _chunks(plain, tokenizer, FastPath(plain))[0].decode == "eager (no CUDA device)"
    assert not FastPath(plain).piece()


def test_layers_that_see_a_window_only_have_no_step(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain.config, "sliding_window", 8, raising=False)
    assert FastPath(plain, recorders=[Rerun()]).prepare() == "eager (its layers do not all attend to the whole context)"


def test_8_bit_layers_have_no_step(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_step, "precision_of", lambda model: "int8")
    fast = FastPath(plain, recorders=[Rerun()])
    assert fast.prepare() == "eager (its 8-bit products wait for the processor, which no graph can)"
    assert not fast.piece()


def test_idle_time_makes_the_columns_steps_and_the_proof_still_holds(
    services: Services, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished_run(services, tiny_model, "lora")
    names = ("base", "adapter")
    request = AnswerRequest(parse_all(names, run.id), dict.fromkeys(names, tuple(ASKED)), SETTINGS)
    *_, eager = services.engine().answer(request, Halt())
    services.engine().release()
    monkeypatch.setattr(fast_step, "recorders_for", lambda device: [Rerun()])
    stepped = eager
    deadline = time.monotonic() + 120
    while {answer.decode for answer in stepped} != {READY} and time.monotonic() < deadline:
        *_, stepped = services.engine().answer(request, Halt())
    assert {answer.decode for answer in stepped} == {READY}
    assert {answer.decode for answer in eager} == {"eager (no CUDA device)"}
    assert [answer.text for answer in stepped] == [answer.text for answer in eager]
    assert [answer.proof for answer in stepped] == [answer.proof for answer in eager]


def test_another_adapter_on_the_weights_drops_the_steps_that_were_captured_without_it(
    services: Services, tiny_model: Path
) -> None:
    run, other = (finished_run(services, tiny_model, "lora") for _ in range(2))
    held = Variants(services.settings, services.runs)
    for _ in held.load(parse_all(["base", "adapter"], run.id)):
        pass
    [weights] = held.held.values()
    before = weights.fast(None)
    assert weights.fast(None) is before
    for _ in held.load(parse_all(["base", "adapter"], other.id)):
        pass
    assert weights.fast(None) is not before


def test_released_weights_are_freed_with_their_steps(services: Services, tiny_model: Path) -> None:
    run = finished_run(services, tiny_model, "lora")
    held = Variants(services.settings, services.runs)
    for _ in held.load(parse_all(["adapter"], run.id)):
        pass
    [weights] = held.held.values()
    one = held.loaded["adapter"]
    weights._fast[one.adapter] = FastPath(weights.model, one.activate, [Rerun()])
    assert one.fast.prepare() == READY
    seen = weakref.ref(weights.model.get_base_model())
    del weights, one
    held.release()
    assert seen() is None
