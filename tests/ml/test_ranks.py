"""Two ranks are one trainer with twice the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.services import Services
from tests.ml.test_train import TINY, ended, trained_here, wait

pytestmark = pytest.mark.processes


def test_two_ranks_end_with_the_losses_of_one_process_with_twice_the_batch(
    services: Services, tiny_model: Path, chat_file: Path
) -> None:
    config = TrainConfig(
        model=str(tiny_model), dataset=str(chat_file), **TINY | {"max_steps": 6, "eval_steps": 3, "save_steps": 3}
    )
    two = wait(services, services.launcher.start(config.changed(per_device_train_batch_size=2), processes=2), ended)
    one = trained_here(services, config.changed(per_device_train_batch_size=4))
    assert (two.state.status, one.state.status) == ("finished", "finished"), services.runs.log_tail(two.id)
    ours, theirs = (services.runs.metrics(run.id) for run in (two, one))
    assert [m.step for m in ours if m.loss is not None] == list(range(1, 7))
    assert [m.loss for m in ours if m.loss is not None] == pytest.approx(
        [m.loss for m in theirs if m.loss is not None], rel=0.02
    )
    assert two.state.summary["eval_loss"] == pytest.approx(one.state.summary["eval_loss"], rel=0.02)
