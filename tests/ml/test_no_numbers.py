"""Weights that lead to no numbers: told where it happened, and no more is lost than has to be."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings
from qlora_demo.errors import WorkError
from qlora_demo.ml import train
from qlora_demo.ml.generate import _likeliest
from qlora_demo.records import AnswerRequest
from qlora_demo.runs import ADAPTER_WEIGHTS, Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from tests.ml.test_engine import ASKED, run_with_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def services(home: Path) -> Services:
    return build_services(Settings(home))


@pytest.fixture
def damaged(services: Services, tiny_model: Path) -> Run:
    """A run whose adapter holds one weight that is no number."""
    run = run_with_rows(services, tiny_model, "qlora")
    path = run.adapter / ADAPTER_WEIGHTS
    weights = load_file(path)
    weights[next(name for name in weights if "lora_B" in name)][0, 0] = math.nan
    save_file(weights, path, metadata={"format": "pt"})
    return run


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_first_answer_already_keeps_the_fault_in_its_column(
    services: Services, damaged: Run, temperature: float
) -> None:
    names = ("base", "adapter")
    settings = GenerationSettings(max_new_tokens=4, temperature=temperature)
    request = AnswerRequest(parse_all(names, damaged.id), dict.fromkeys(names, ASKED), settings)
    *_, (base, adapter) = services.engine().answer(request, Halt())
    assert base.finish and not base.error
    assert "scores are no numbers" in adapter.error
    services.engine().release()


def test_an_evaluation_says_which_column_it_ended_in(services: Services, damaged: Run) -> None:
    with pytest.raises(WorkError, match="adapter: answer: the model's scores are no numbers"):
        list(services.engine().evaluate(damaged.id, parse_all(("base", "adapter"), damaged.id), 2, Halt()))
    services.engine().release()


def test_a_run_that_ends_in_no_numbers_is_finished_without_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise WorkError("answer: the model's scores are no numbers")

    monkeypatch.setattr(train, "score_answers", refuse)
    assert train._scored(None, [], Path("stop")) == ({}, "score_rows: answer: the model's scores are no numbers")


def test_every_row_is_looked_at_and_only_what_would_be_taken() -> None:
    assert _likeliest(torch.tensor([[1.0, 2.0], [-math.inf, 1.0]])).tolist() == [1, 1]
    with pytest.raises(WorkError, match="no numbers"):
        _likeliest(torch.tensor([[1.0, 2.0], [math.nan, 1.0]]))
