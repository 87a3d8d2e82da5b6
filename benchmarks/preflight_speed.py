"""How long the check of the data before a run takes, and how much memory, on many rows.

    python -m benchmarks.preflight_speed [--rows 100000] [--out FILE]

Method: rows of the bundled task, each with a number of its own, are written as JSONL into a temporary folder; every
tenth repeats its ticket until it is longer than max_length.  Then `preflight` reads them once with the bundled model's
tokenizer, loading that included.  Seconds are of the wall clock and of the processor (all threads of this process),
which a busy machine disturbs less; memory is the peak of what the process held meanwhile less what it held before.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qlora_demo.benchmark.runner import write_result_file
from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.ml.machine import versions
from qlora_demo.ml.peak import give_back, peak_memory_bytes, reset_peak
from qlora_demo.ml.preflight import preflight
from qlora_demo.rows import tickets
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt

_LONG_EVERY = 10
_MOST_CHARACTERS_A_TOKEN = 5


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        config = TrainConfig(model=SMOLLM2.name, dataset=str(path))
        write_rows(path, args.rows, config.max_length)
        measured = measure(config)
    result = {
        "method": " ".join(__doc__.split("Method: ")[1].split()),
        "machine": versions(),
        "model": SMOLLM2.name,
        "settings": {"rows": args.rows, "long_every": _LONG_EVERY, "max_length": config.max_length}
        | {"loss_on": config.loss_on},
        **measured,
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_result_file(args.out, result)


def write_rows(path: Path, count: int, max_length: int) -> None:
    """The bundled task's training rows over and over, no two the same, every tenth longer than is trained."""
    drawn = cycle(tickets.rows("train", 2000))
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(drawn, count)):
            system, asked, answered = row["messages"]
            text = f"{asked['content']} Ticket {number}."
            if number % _LONG_EVERY == 0:
                text = " ".join([text] * (1 + max_length * _MOST_CHARACTERS_A_TOKEN // len(text)))
            file.write(json.dumps({"messages": [system, {"role": "user", "content": text}, answered]}) + "\n")


def measure(config: TrainConfig) -> dict[str, Any]:
    """One check from its beginning to its end."""
    give_back()
    reset_peak()
    before, wall, processor = peak_memory_bytes(), time.perf_counter(), time.process_time()
    *_, last = preflight(config, Settings.from_environment(), Halt())
    seconds, processor_seconds = time.perf_counter() - wall, time.process_time() - processor
    found = last.result
    return {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "rows_per_second": found["rows"] / seconds,
        "tokens": round(found["lengths"]["mean"] * found["rows"]),
        "peak_memory_growth_bytes": peak_memory_bytes() - before,
        "longest_row_tokens": found["lengths"]["longest"],
        "problems": {one["kind"]: one["count"] for one in found["problems"]},
    }


if __name__ == "__main__":
    main(sys.argv[1:])
