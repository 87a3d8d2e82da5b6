"""Python's garbage: looked for seldom while libraries are imported, and as usual where tensors come and go."""

from __future__ import annotations

import subprocess
import sys

import pytest

_TOLD = """
import gc
usual = gc.get_threshold()
import qlora_demo
importing = gc.get_threshold()
{work}
print(importing[0] > usual[0], gc.get_threshold() == usual)
"""
_TRAINER = "import contextlib, sys; sys.argv[1:] = ['/nowhere']; from qlora_demo.ml.train import main"
_MEASURE = "import contextlib, io, sys; sys.stdin = io.StringIO(''); from qlora_demo.ml.measure import main"
_ENGINE = """
from pathlib import Path
from qlora_demo.compose import build_services
from qlora_demo.settings import Settings
build_services(Settings(Path("/nowhere"))).engine()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "work",
    [
        "from qlora_demo.system.heap import collect_as_usual; collect_as_usual()",
        f"{_TRAINER}\nwith contextlib.suppress(BaseException): main()",
        f"{_MEASURE}\nout = sys.stdout\nwith contextlib.suppress(BaseException): main()\nsys.stdout = sys.stderr",
        _ENGINE,
    ],
    ids=["asked", "a trainer", "a measurement", "an engine"],
)
def test_garbage_is_looked_for_as_usual_where_tensors_come_and_go(work: str) -> None:
    command = [sys.executable, "-c", _TOLD.format(work=work)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "True True" in (done.stdout + done.stderr).splitlines(), done.stderr
