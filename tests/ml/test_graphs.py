"""What is asked of CUDA to capture a graph, where there is no CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from qlora_demo.ml.fast_step import CudaGraphs


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what was asked of CUDA, in order."""
    asked: list[str] = []

    class Aside:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            asked.append(f"{type(self).__name__}{args[1:]}{kwargs}")

        def __enter__(self) -> None:
            asked.append("enter")

        def __exit__(self, *exc: object) -> None:
            asked.append("exit")

        def wait_stream(self, other: Any) -> None:
            asked.append("wait")

        def replay(self) -> None:
            asked.append("replay")

    for name in ("Stream", "CUDAGraph", "graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, type(name, (Aside,), {}))
    monkeypatch.setattr(torch.cuda, "current_stream", Aside)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: asked.append("back"))
    yield asked


def test_a_capture_that_fails_leaves_the_stream_as_it_was(calls: list[str]) -> None:
    def run() -> torch.Tensor:
        if "graph(){'capture_error_mode': 'thread_local'}" in calls:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="capturing"):
        CudaGraphs(compiles=True).capture(run)
    assert calls[-1] == "back"


def test_a_graph_is_captured_after_rehearsals_and_only_replayed_from_then_on(calls: list[str]) -> None:
    runs: list[str] = []

    def run() -> torch.Tensor:
        runs.append("run")
        calls.append("run")
        return torch.zeros(1)

    replay = CudaGraphs(compiles=True).capture(run)
    captured = calls.index("graph(){'capture_error_mode': 'thread_local'}")
    assert calls[captured + 1 : captured + 4] == ["enter", "run", "exit"]
    assert len(runs) == 4
    assert replay() is replay()
    assert (len(runs), calls[-2:]) == (4, ["replay", "replay"])
