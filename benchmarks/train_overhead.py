"""Is training through the app as fast as a plain script?  Both, in turn, in one run; the ratio is what counts.

    python -m benchmarks.train_overhead [--steps 20] [--rounds 3] [--out FILE]

Method: each round trains the same rows with the same settings through the app (`python -m qlora_demo train`), through
the plain script with the app's checkpointing (same settings), and through the plain script with TRL's default
checkpointing (its default settings).  tokens/s = unpadded tokens over the seconds of the training loop alone, the
app's writing of its metrics included; neither side evaluates in between.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from qlora_demo.gpu import device_info
from qlora_demo.runs import RunStore
from qlora_demo.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rounds = [one_round(args.steps) for _ in range(args.rounds)]
    result = {
        "machine": {"device": device_info().name, "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft", "bitsandbytes")},
        "steps": args.steps,
        "unit": "unpadded tokens per second of the training loop",
        "rounds": rounds,
        "ratio_same_settings": median(r["app"] / r["plain_same"] for r in rounds),
        "ratio_script_defaults": median(r["app"] / r["plain_default"] for r in rounds),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", "utf-8")


def one_round(steps: int) -> dict[str, float]:
    """Tokens per second of the app and of the plain script with checkpointing off and on."""
    rates = {"app": app(steps), "plain_same": plain(steps, "off"), "plain_default": plain(steps, "on")}
    print({name: round(rate, 1) for name, rate in rates.items()}, file=sys.stderr)
    return rates


def app(steps: int) -> float:
    """Through the command line; timed by the run's own metrics lines, first step's begin to last line."""
    result = run("-m", "qlora_demo", "train", "--max-steps", str(steps), "--eval-steps", str(steps + 1), "--json")
    runs = RunStore(Settings.from_environment().runs)
    metrics = [m for m in runs.metrics(result["run"]) if m.step_seconds is not None]
    seconds = metrics[-1].time - metrics[0].time + (metrics[0].step_seconds or 0)
    runs.delete(result["run"])
    return sum(m.tokens or 0 for m in metrics) / seconds


def plain(steps: int, checkpointing: str) -> float:
    """Through the plain script."""
    result = run("benchmarks/plain_sft.py", str(steps), checkpointing)
    return float(result["tokens"] / result["seconds"])


def run(*arguments: str) -> Any:
    """A Python process in the checkout; the JSON document that ends its output."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    start = done.stdout.rfind('\n{"tokens"') + 1 if "plain_sft" in arguments[0] else 0
    return json.loads(done.stdout[start:])


if __name__ == "__main__":
    main()
