"""A training process whose ranks shard the model over a CPU's memory, as they do over GPUs.

torch's FSDP2 and gloo can; accelerate wraps a model only where it counts GPUs, and the product refuses what nobody
would want.  Both are told otherwise here, and nothing else is.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from qlora_demo.ml import train
from qlora_demo.ml.ranks import is_main
from qlora_demo.plan import choices
from qlora_demo.records import TrainMetrics
from qlora_demo.runs import append_metrics

STOP_AFTER = "TEST_STOP_AFTER"
SEEN = "sharded.json"
"""What the first rank holds of each parameter after training: name -> (shape in all, elements here)."""


def main() -> None:
    begin, finish = PartialState.__init__, train._finish

    def counts_gpus(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    def stops(path: Path, metrics: TrainMetrics) -> None:
        append_metrics(path, metrics)
        if metrics.step == int(os.environ.get(STOP_AFTER, 0)):
            (path / "stop").touch()

    def looks(path: Path, config: Any, splits: Any, trainer: Any, reporter: Any) -> None:
        parameters = trainer.model.named_parameters()
        held = {name: (one.shape, one.to_local().numel()) for name, one in parameters if isinstance(one, DTensor)}
        if is_main():
            (path / SEEN).write_text(json.dumps(held), "utf-8")
        finish(path, config, splits, trainer, reporter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialState, "__init__", counts_gpus)
        patch.setattr("qlora_demo.ml.trainer.refuse", lambda config, _: choices.refuse(config, "cuda"))
        patch.setattr("qlora_demo.ml.reporter.append_metrics", stops)
        patch.setattr(train, "_finish", looks)
        train.main()


if __name__ == "__main__":
    main()
