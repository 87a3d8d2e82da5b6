"""Presets are configs; a command line and a JSON file bring the same config back."""

from __future__ import annotations

import shlex

import pytest

from qlora_demo import cli
from qlora_demo.commands.arguments import train_config
from qlora_demo.config import TrainConfig
from qlora_demo.presets import PRESETS, apply_preset, command_line, config_difference

UNUSUAL = TrainConfig(
    model="./a folder", method="lora", use_dora=True, bnb_4bit_use_double_quant=False, columns="prompt=q", max_steps=-1
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_model_and_data(name: str) -> None:
    mine = TrainConfig(model="m", dataset="d.jsonl", columns="prompt=q", eval_rows=7, seed=8)
    made = apply_preset(name, mine)
    assert (made.model, made.dataset, made.columns) == ("m", "d.jsonl", "prompt=q")
    assert (made.eval_rows, made.seed) == (7, 8), "which rows are held out"
    assert config_difference(made, PRESETS[name]).keys() == {"model", "dataset", "columns", "eval_rows", "seed"}


@pytest.mark.parametrize("config", [UNUSUAL, *PRESETS.values()])
def test_the_command_line_trains_the_same(config: TrainConfig) -> None:
    _, _, _, *arguments = shlex.split(command_line(config))
    assert train_config(cli._parser().parse_args(arguments)) == config
    assert TrainConfig.from_json(config.model_dump_json(), "x") == config


def test_the_defaults_need_no_flag() -> None:
    assert command_line(TrainConfig()) == "python -m qlora_demo train"
    assert command_line(TrainConfig(), processes=2) == "python -m qlora_demo train --processes 2"


def test_a_difference_names_both_values() -> None:
    assert config_difference(TrainConfig(), TrainConfig(r=8, method="lora")) == {
        "method": ("qlora", "lora"),
        "r": (16, 8),
    }
