"""The product's promise on the bundled model with the defaults: one real run, its scores, its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.halt import Halt
from qlora_demo.ml.generate import encode, stream
from qlora_demo.ml.variants import Loaded
from qlora_demo.records import Answer, AnswerRequest, Message
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings

pytestmark = [pytest.mark.bundled, pytest.mark.timeout(1800)]  # the run takes minutes, more on a busy machine
NAMES = ["base", "adapter", "merged"]
SETTINGS = GenerationSettings(max_new_tokens=32)
ROWS, ROWS_THAT_RAMBLE = 12, 3
"""Of each split; the base model's answers end at the most tokens that they may take."""


@pytest.fixture(scope="module")
def trained(bundled_models: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Services, Run]:
    """A run with the default config, in a home of its own."""
    home = tmp_path_factory.mktemp("full") / "home"
    home.mkdir()
    (home / "models").symlink_to(bundled_models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_DEMO_HOME", str(home))
        services = build_services(Settings(home))
        run = services.launcher.start(TrainConfig())
        while not (run := services.runs.get(run.id)).state.ended or run.alive:
            time.sleep(0.5)
    assert run.state.status == "finished", services.runs.log_tail(run.id)
    return services, run


@dataclass(frozen=True)
class Asked:
    """What the columns were asked and answered, and their models as the app holds them."""

    prompt: tuple[Message, ...]
    answers: list[Answer]
    held: dict[str, Loaded]


@pytest.fixture(scope="module")
def asked(trained: tuple[Services, Run]) -> Iterator[Asked]:
    services, run = trained
    prompt = tuple(services.runs.heldout(run.id)["hard"][0][:-1])
    request = AnswerRequest(parse_all(NAMES, run.id), dict.fromkeys(NAMES, prompt), SETTINGS)
    engine: Any = services.engine()
    *_, answers = engine.answer(request, Halt())
    yield Asked(prompt, answers, engine._variants.loaded)
    engine.release()


def test_the_adapter_learns_the_task_and_the_base_does_not_know_it(trained: tuple[Services, Run]) -> None:
    services, run = trained
    scores = _evaluated(services, run, "adapter", ROWS)
    base = _evaluated(services, run, "base", ROWS_THAT_RAMBLE)
    assert base["test"]["base"]["exact_match"] == 0
    assert scores["test"]["adapter"]["exact_match"] >= 0.80
    assert scores["hard"]["adapter"]["exact_match"] >= 0.50
    assert scores["test"]["adapter"]["valid_json"] >= 0.98
    assert scores["hard"]["adapter"]["valid_json"] >= 0.98


def test_every_column_says_what_plain_generate_says(asked: Asked) -> None:
    assert [answer.column for answer in asked.answers] == NAMES
    for answer in asked.answers:
        assert answer.text == _plain(asked.held[answer.column], asked.prompt), answer.column


def test_reported_times_agree_with_an_outside_stopwatch(asked: Asked) -> None:
    """Not a speed test: both sides measure the same passes of one run.  Of three answers the one that was disturbed
    least, and its median pass: a busy machine may take the processor away between the two clocks of any one."""
    for name in NAMES:
        answers = [_timed_twice(asked.held[name], asked.prompt) for _ in range(3)]
        assert all(inside <= outside for passes in answers for inside, outside in passes)
        shares = [
            median(inside) / median(outside) for inside, outside in (zip(*passes, strict=True) for passes in answers)
        ]
        assert max(shares) == pytest.approx(1, rel=0.05), (name, shares)


def _timed_twice(one: Loaded, prompt: Any) -> list[tuple[float, float]]:
    """The seconds of each pass, as they are reported and as they are from outside."""
    chunks = stream(one.model, one.tokenizer, prompt, GenerationSettings(max_new_tokens=16), one.activate)
    timed = list[tuple[float, float]]()
    while True:
        started = time.perf_counter()
        chunk = next(chunks, None)
        if chunk is None:
            return timed
        timed.append((chunk.seconds, time.perf_counter() - started))


def _evaluated(services: Services, run: Run, column: str, rows: int) -> dict[str, Any]:
    """The column's figures on each split."""
    *_, last = services.engine().evaluate(run.id, parse_all([column], run.id), rows, Halt())
    return dict(last.result["splits"])


def _plain(one: Loaded, prompt: Any) -> str:
    inputs = encode(one.tokenizer, [prompt])
    with torch.inference_mode(), one.activate():
        out = one.model.generate(**inputs, max_new_tokens=SETTINGS.max_new_tokens, do_sample=False)
    return str(one.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
