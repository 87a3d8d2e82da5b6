"""Is training through the app as fast as a plain script?  Both, in turn, in one run; the ratio is what counts.

    python -m benchmarks.train_overhead [--model shape:llama-2-7b] [--steps 20] [--rounds 3] [--out FILE] ...

Method: each round trains the same rows with the same settings through the app (`python -m qlora_demo train`), through
the plain script with the app's checkpointing (same settings), and through the plain script with TRL's default
checkpointing (its default settings).  The script multiplies in bf16, as tutorials do; on a processor the app has
frozen layers multiply in fp32 where that is faster.  tokens/s = unpadded tokens over the seconds of the training loop
alone, the app's writing of its metrics included; neither side evaluates in between.  A steady rate is of the median
step after the first two, in which kernels are compiled and memory is taken.  A last loss is the mean over the last 5
steps, and a difference that of the app's to the script's, over the script's; both draw the adapter's first values
anew.  A shape trains rows of random letters, each as long as allowed; another model the bundled task.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.plain_sft import LAST_STEPS
from qlora_demo.benchmark.cases import WARM_UP_STEPS
from qlora_demo.benchmark.runner import write_result_file
from qlora_demo.catalog import SMOLLM2, is_shape
from qlora_demo.config import TrainConfig
from qlora_demo.ml.machine import versions
from qlora_demo.runs import RunStore
from qlora_demo.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("plain_same", "plain_default")
Round = dict[str, dict[str, float]]


def main(argv: list[str]) -> None:
    args = arguments().parse_args(argv)
    with TemporaryDirectory() as folder:
        config = prepared(args, Path(folder))
        rounds = [one_round(config, Path(folder) / "config.json") for _ in range(args.rounds)]
    result = {
        "method": " ".join(__doc__.split("Method: ")[1].split()),
        "machine": versions(),
        "model": args.model,
        "settings": config.model_dump() | {"rounds": args.rounds},
        "unit": "unpadded tokens per second of the training loop",
        "rounds": rounds,
        **compared(rounds),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        write_result_file(args.out, result)


def arguments() -> argparse.ArgumentParser:
    """What may be chosen; the rest is as the app's defaults are."""
    app = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=SMOLLM2.name, help="the bundled one, a shape:NAME, a folder or a hub id")
    parser.add_argument("--steps", type=whole_steps, default=20, help=f"a multiple of {LAST_STEPS}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=app.per_device_train_batch_size)
    parser.add_argument("--max-length", type=int, default=app.max_length)
    parser.add_argument("--learning-rate", type=float, help="default: the app's; of a shape 2e-4")
    parser.add_argument("--checkpointing", choices=("off", "on"), default="off")
    parser.add_argument("--out", type=Path)
    return parser


def whole_steps(text: str) -> int:
    """A number of steps whose last ones the script logs together."""
    steps = int(text)
    if steps < LAST_STEPS or steps % LAST_STEPS:
        raise argparse.ArgumentTypeError(f"{steps} is not allowed; give a multiple of {LAST_STEPS}")
    return steps


def prepared(args: argparse.Namespace, folder: Path) -> TrainConfig:
    """The settings of both sides, in ``config.json`` of the folder; beside it a shape's rows."""
    config = TrainConfig(
        model=args.model,
        max_steps=args.steps,
        eval_steps=args.steps + 1,
        eval_rows=1,
        per_device_train_batch_size=args.batch,
        max_length=args.max_length,
        gradient_checkpointing=args.checkpointing,
    )
    if is_shape(args.model):
        path = folder / "rows.jsonl"
        path.write_text(random_rows(args.steps * args.batch + 1, args.max_length), "utf-8")
        config = config.changed(dataset=str(path), learning_rate=2e-4)
    if args.learning_rate:
        config = config.changed(learning_rate=args.learning_rate)
    (folder / "config.json").write_text(config.model_dump_json(), "utf-8")
    return config


def random_rows(count: int, letters: int) -> str:
    """JSONL of texts that fill a row of a shape's tokenizer, which knows letters."""
    drawn = random.Random(0)
    texts = ("".join(drawn.choices(string.ascii_letters, k=letters)) for _ in range(count))
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def one_round(config: TrainConfig, path: Path) -> Round:
    """Tokens per second and last loss of the app, and of the plain script with the app's checkpointing and its own."""
    found = {
        "app": app(config, path),
        "plain_same": plain(path, config.gradient_checkpointing),
        "plain_default": plain(path, "on"),
    }
    print(json.dumps(found), file=sys.stderr)
    return found


def app(config: TrainConfig, path: Path) -> dict[str, float]:
    """Through the command line; timed by the run's own metrics lines, first step's begin to last line."""
    result = run("-m", "qlora_demo", "train", "--config", str(path), "--json")
    runs = RunStore(Settings.from_environment().runs)
    metrics = [m for m in runs.metrics(result["run"]) if m.step_seconds is not None]
    runs.delete(result["run"])
    seconds = metrics[-1].time - metrics[0].time + (metrics[0].step_seconds or 0)
    tokens = sum(m.tokens or 0 for m in metrics)
    return {
        "tokens_per_second": tokens / seconds,
        "steady_tokens_per_second": tokens / len(metrics) / median_step([m.time for m in metrics]),
        "last_loss": fmean(m.loss for m in metrics[-LAST_STEPS:] if m.loss is not None),
    }


def plain(path: Path, checkpointing: str) -> dict[str, float]:
    """Through the plain script."""
    result = run("-m", "benchmarks.plain_sft", str(path), checkpointing)
    ends, tokens = result["ends"], result["tokens"]
    return {
        "tokens_per_second": tokens / result["seconds"],
        "steady_tokens_per_second": tokens / len(ends) / median_step(ends),
        "last_loss": result["last_loss"],
    }


def median_step(ends: Sequence[float]) -> float:
    """Seconds of the median step after the first two, by when each step ended."""
    return median(after - before for before, after in pairwise(ends[WARM_UP_STEPS - 1 :]))


def run(*arguments: str) -> Any:
    """A Python process in the checkout; the JSON document that ends its output."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    start = done.stdout.rfind('\n{"tokens"') + 1 if "benchmarks.plain_sft" in arguments else 0
    return json.loads(done.stdout[start:])


def compared(rounds: list[Round]) -> dict[str, Any]:
    """The app against both scripts: medians over the rounds."""
    speed, steady = (
        {name: median(_over(one, name, figure) for one in rounds) for name in SCRIPTS}
        for figure in ("tokens_per_second", "steady_tokens_per_second")
    )
    return {
        "ratio_same_settings": speed["plain_same"],
        "ratio_script_defaults": speed["plain_default"],
        "steady_ratio_same_settings": steady["plain_same"],
        "steady_ratio_script_defaults": steady["plain_default"],
        "last_loss": {name: median(one[name]["last_loss"] for one in rounds) for name in ("app", *SCRIPTS)},
        "loss_difference": {name: median(_over(one, name, "last_loss") - 1 for one in rounds) for name in SCRIPTS},
    }


def _over(found: Round, script: str, figure: str) -> float:
    return found["app"][figure] / found[script][figure]


if __name__ == "__main__":
    main(sys.argv[1:])
