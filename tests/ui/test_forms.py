"""What the tabs make of their forms: what is not shown does not count, and a wrong value is named."""

from __future__ import annotations

from typing import Any

import pytest

from qlora_demo.benchmark.config import BenchmarkConfig, BenchmarkKind
from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError
from qlora_demo.knobs import field_names
from qlora_demo.presets import LAPTOP
from qlora_demo.services import Services
from qlora_demo.ui.benchmark_tab import _SETTINGS, Bench, _form_of
from qlora_demo.ui.controls import group_of
from qlora_demo.ui.evaluate_tab import _from_zero, _limit
from qlora_demo.ui.explain_tab import Explain
from qlora_demo.ui.train_tab import _GROUPS, _MORE
from tests.abandoned import abandoned


def test_an_option_of_another_benchmark_does_not_count(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services.benchmarks, "start", lambda *asked: abandoned(services.benchmarks, *asked))
    options = {"ranks": "8,x", "gpu_memory": "1GB", "steps": 3, "prompt_tokens": "0"}
    bench = Bench(services, list(options), ["model"], LAPTOP)

    def start(kind: BenchmarkKind, **changes: Any) -> BenchmarkConfig:
        bench.start(kind, *(options | changes).values(), "shape:tiny")
        return BenchmarkConfig(**services.benchmarks.all()[0]["options"])

    found = start("frontier")
    assert (found.gpu_memory, found.ranks, found.prompt_tokens) == ("1GB", "8,64,256", "32,512")
    with pytest.raises(ConfigError, match="ranks: '8,x' is not allowed"):
        start("rank")
    with pytest.raises(ConfigError, match="gpu_memory: 'lots' is not allowed"):
        start("frontier", gpu_memory="lots")


@pytest.mark.parametrize(
    ("kind", "run", "hidden"),
    [
        ("training", "", {"method", "dataset", "max_steps", "score_rows"}),
        ("rank", "", {"r", "target_modules"}),
        ("inference", "a-run", set(_SETTINGS)),
    ],
)
def test_a_benchmark_shows_and_takes_only_what_it_has_a_use_for(
    services: Services, monkeypatch: pytest.MonkeyPatch, kind: BenchmarkKind, run: str, hidden: set[str]
) -> None:
    asked: list[TrainConfig] = []
    monkeypatch.setattr(services.benchmarks, "check", lambda options, config: asked.append(config))
    monkeypatch.setattr(services.benchmarks, "start", lambda *_: None)
    typed = {name: "wrong" if name in hidden else getattr(LAPTOP, name) for name in _SETTINGS}
    Bench(services, ["run"], list(_SETTINGS), LAPTOP).start(kind, run, *typed.values())
    assert asked == [LAPTOP]
    shown = [update["visible"] for update in _form_of(kind, run)[-len(_SETTINGS) :]]
    assert {name for name, seen in zip(_SETTINGS, shown, strict=True) if not seen} == hidden


def test_rows_are_all_where_none_are_named_and_never_none() -> None:
    assert (_limit(None), _limit(3.0)) == (None, 3)
    for wrong in (0, -5, 1.5):
        with pytest.raises(ConfigError, match=f"rows: {wrong:g} is not allowed"):
            _limit(wrong)


def test_a_page_before_the_first_is_the_first() -> None:
    assert [_from_zero(typed) for typed in (None, -7, 0, 1, 3)] == [0, 0, 0, 0, 2]


def test_every_field_of_a_run_has_a_place_in_the_form() -> None:
    assert {group_of(TrainConfig, name) for name in field_names(TrainConfig)} == {*_GROUPS, *_MORE.values(), "Advanced"}


def test_the_layer_that_is_shown_first_has_an_update(services: Services) -> None:
    names = [f"model.layers.{at}.{name}" for at in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")]
    explain = Explain(services)
    some = services.runs.create(TrainConfig(target_modules="attention")).id
    every = services.runs.create(TrainConfig()).id
    assert explain._middle(some, names) == names[::2][1]
    assert explain._middle(every, names) == explain._middle(None, names) == names[2]
    assert explain._middle(some, names[1::2]) == names[3], "none has an update: the middle one of all"
    with pytest.raises(ConfigError, match="no linear layer"):
        explain._middle(None, [])
