"""The product's promise on the bundled model with the defaults: one real run, its scores, its answers."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings, TrainConfig
from qlora_demo.ml.generate import encode, stream
from qlora_demo.ml.variants import Loaded, Variants
from qlora_demo.records import AnswerRequest
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from tests.ml.test_variants import loaded

pytestmark = [pytest.mark.bundled, pytest.mark.timeout(1800)]  # the run takes minutes, more on a busy machine
NAMES = ["base", "adapter", "merged"]
ROWS = 12


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


@pytest.fixture(scope="module")
def held(trained: tuple[Services, Run]) -> dict[str, Loaded]:
    """The models of all columns, apart from those that the app answers with."""
    services, run = trained
    return dict(zip(NAMES, loaded(Variants(services.settings, services.runs), run, NAMES), strict=True))


def test_the_adapter_learns_the_task_and_the_base_does_not_know_it(trained: tuple[Services, Run]) -> None:
    services, run = trained
    scores = _evaluated(services, run)["splits"]
    services.engine().release()
    assert scores["test"]["base"]["exact_match"] <= 0.05
    assert scores["test"]["adapter"]["exact_match"] >= 0.80
    assert scores["hard"]["adapter"]["exact_match"] >= 0.50
    assert scores["test"]["adapter"]["valid_json"] >= 0.98
    assert scores["hard"]["adapter"]["valid_json"] >= 0.98


def test_every_column_says_what_plain_generate_says(trained: tuple[Services, Run], held: dict[str, Loaded]) -> None:
    services, run = trained
    prompt = tuple(services.runs.heldout(run.id)["hard"][0][:-1])
    settings = GenerationSettings(max_new_tokens=32)
    request = AnswerRequest(parse_all(NAMES, run.id), dict.fromkeys(NAMES, prompt), settings)
    *_, answers = services.engine().answer(request, Halt())
    assert [answer.column for answer in answers] == NAMES
    for answer in answers:
        assert answer.text == _plain(held[answer.column], prompt, settings), answer.column
    services.engine().release()


def test_reported_times_agree_with_an_outside_stopwatch(trained: tuple[Services, Run], held: dict[str, Loaded]) -> None:
    """Not a speed test: both sides measure the same passes of one run.  Of three answers the one that was disturbed
    least, and its median pass: a busy machine may take the processor away between the two clocks of any one."""
    services, run = trained
    for one in held.values():
        prompt = services.runs.heldout(run.id)["test"][0][:-1]
        answers = [_timed_twice(one, prompt) for _ in range(3)]
        assert all(inside <= outside for passes in answers for inside, outside in passes)
        shares = [
            median(inside) / median(outside) for inside, outside in (zip(*passes, strict=True) for passes in answers)
        ]
        assert max(shares) == pytest.approx(1, rel=0.05), (one.resident.column.name, shares)


def _timed_twice(one: Loaded, prompt: Any) -> list[tuple[float, float]]:
    """The seconds of each pass, as they are reported and as they are from outside."""
    chunks = stream(one.model, one.tokenizer, prompt, GenerationSettings(max_new_tokens=24), one.activate)
    timed = list[tuple[float, float]]()
    while True:
        started = time.perf_counter()
        chunk = next(chunks, None)
        if chunk is None:
            return timed
        timed.append((chunk.seconds, time.perf_counter() - started))


def _evaluated(services: Services, run: Run) -> dict[str, Any]:
    *_, last = services.engine().evaluate(run.id, parse_all(["base", "adapter"], run.id), ROWS, Halt())
    return last.result


def _plain(one: Loaded, prompt: Any, settings: GenerationSettings) -> str:
    inputs = encode(one.tokenizer, [prompt])
    with torch.inference_mode(), one.activate():
        out = one.model.generate(**inputs, max_new_tokens=settings.max_new_tokens, do_sample=False)
    return str(one.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
