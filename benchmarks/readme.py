"""The README's measured figures, written from the result files in benchmarks/results/.

python -m benchmarks.readme            write them
python -m benchmarks.readme --check    exit 1 where the README says anything else
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.plan_truth import fitted_cases, planned_bytes
from qlora_demo.benchmark import tables as measured
from qlora_demo.benchmark.cases import METHODS
from qlora_demo.benchmark.notes import notes, standing
from qlora_demo.results import tables
from qlora_demo.results.tables import Table, markdown
from qlora_demo.units import GIB, counted, duration, memory, percent

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
_TITLES = {
    "training": "LoRA against QLoRA",
    "rank": "Ranks and targets",
    "frontier": "How far a budget of memory goes",
    "inference": "Latency",
}


def main(argv: list[str]) -> int:
    """Write, or check; the exit status."""
    text = README.read_text("utf-8")
    made = with_figures(text)
    if argv == ["--check"]:
        print("README.md is up to date" if made == text else "README.md: run `python -m benchmarks.readme`")
        return int(made != text)
    README.write_text(made, "utf-8")
    return 0


def with_figures(text: str) -> str:
    """The README with what stands between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [told(json.loads(path.read_text("utf-8")), path.name) for path in sorted(RESULTS.glob("*.json"))]
    return f"{before}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{after}"


def told(result: dict[str, Any], name: str) -> str:
    """One result file as Markdown."""
    if result.get("kind") in METHODS:
        title = f"{_TITLES[result['kind']]}: {measured.settings(result)}"
        shown = result | {"method": notes(result, short=True)}
        return _section(title, measured.table(result, short=True), shown, name)
    if "ratio_script_defaults" in result:
        model = f": {result['model']}" if "model" in result else ""
        return _section(f"Training through the app against a plain TRL script{model}", _overhead(result), result, name)
    if "rows_per_second" in result:
        title = f"Checking {result['settings']['rows']:,} rows before training"
        return _section(title, _preflight(result), result, name)
    if "speed_ratio" in result:
        title = f"Decoding {result['model']} on {counted(result['threads'], 'thread')}"
        return _section(title, _decoding(result), result, name)
    if "splits" in result:
        return _whole_run(result, name)
    if not {row["case"] for row in result["rows"]} <= {case.name for case in fitted_cases(result["kind"])}:
        title = "The memory plan on settings that it was not fitted to: the article's, one row a step, but as named"
        return _section(title, _wider_plan(result), result, name)
    return _section("The memory plan against what was taken", _plan(result), result, name)


def _section(title: str, table: Table, result: dict[str, Any], name: str, *more: Table) -> str:
    early = f", {standing(result)}" if result.get("state", "finished") != "finished" else ""
    head = f"**{title}** ([{name}](benchmarks/results/{name}), {_device(result)}{early})\n"
    words = " ".join(result.get("method", "").split())
    method = f"\n{words[0].upper()}{words[1:]}\n" if words else ""
    return f"{head}\n" + "\n".join(f"{markdown(one)}\n" for one in (table, *more)) + method


def _device(result: dict[str, Any]) -> str:
    """Where a file was measured, and with which torch."""
    machine = result["machine"]
    device = str(machine.get("device", "")) or measured.machine(result)
    return f"{device}, torch {machine['torch'].partition('+')[0]}" if "torch" in machine else device


def _whole_run(result: dict[str, Any], name: str) -> str:
    """A run's figures in a sentence, then how its columns were judged, how they answered, and what merging changed."""
    trained, settings = result["training"], result["settings"]
    took = (
        f"The {counted(trained['steps'], 'step')} took {duration(trained['runtime_seconds'])}, loading and the "
        f"held-out losses included, and at most {memory(trained['peak_memory_bytes'])}."
    )
    more = [_answered(result)] if "columns" in result else []
    more += [tables.fidelity(result)] if "merges" in result else []
    early = "" if "export" in result else " This one was ended before it came to all of that."
    title = f"A run of {settings['model']}, from its first step to its judgement"
    shown = result | {"method": f"{result['method']} {took}{early}"}
    return _section(title, tables.evaluation(result), shown, name, *more)


def _answered(result: dict[str, Any]) -> Table:
    """How each column answered, in medians; a dash for what an answer of one token does not have."""
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "ttft_seconds": ("first token", duration),
        "tpot_median_seconds": ("per token", duration),
        "tokens_per_second": ("tokens/s", "{:.1f}".format),
        "bandwidth_share": ("share of bandwidth", percent),
        "model_bytes": ("weights", memory),
    }
    rows = (
        (
            column,
            *("–" if found[name] is None else form(found[name]) for name, (_, form) in forms.items()),
            "; ".join(found["decode"]),
        )
        for column, found in result["columns"].items()
    )
    return Table(("column", *(label for label, _ in forms.values()), "decoding"), tuple(rows))


def _overhead(result: dict[str, Any]) -> Table:
    scripts = {"same_settings": "the script at the app's settings", "script_defaults": "the script at its own defaults"}
    rows = tuple((told, *_ratios(result, name), *_losses(result, name)) for name, told in scripts.items())
    steady = ("steady",) if "steady_ratio_same_settings" in result else ()
    losses = ("last loss, app", "last loss, script", "difference") if "last_loss" in result else ()
    return Table(("the app's tokens/s over", _of_rounds(result), *steady, *losses), rows)


def _of_rounds(result: dict[str, Any]) -> str:
    """What a ratio is of, by how many rounds a file holds."""
    count = len(result.get("rounds", ()))
    return "ratio, of one round" if count == 1 else f"ratio, median of {count} rounds" if count else "ratio"


def _ratios(result: dict[str, Any], name: str) -> list[str]:
    found = (result.get(f"{kind}_{name}") for kind in ("ratio", "steady_ratio"))
    return [f"{ratio:.2f} x" for ratio in found if ratio is not None]


def _losses(result: dict[str, Any], name: str) -> tuple[str, ...]:
    """The app's last loss, a script's, and how far they are apart."""
    if "last_loss" not in result:
        return ()
    script = {"same_settings": "plain_same", "script_defaults": "plain_default"}[name]
    losses = result["last_loss"]
    return f"{losses['app']:.4f}", f"{losses[script]:.4f}", f"{result['loss_difference'][script]:+.2%}"


def _decoding(result: dict[str, Any]) -> Table:
    rows = tuple(
        (
            name,
            f"{ratio['cpu']:.2f} x",
            f"{ratio['wall']:.2f} x",
            "the same" if result["same_tokens"][name] else "not all the same",
        )
        for name, ratio in result["speed_ratio"].items()
    )
    return Table(("tokens/s", "by processor time", "by the clock", "tokens"), rows)


def _preflight(result: dict[str, Any]) -> Table:
    figures = (
        f"{result['seconds']:.1f} s",
        f"{result['rows_per_second']:,.0f}",
        f"{result['tokens']:,}",
        memory(result["peak_memory_growth_bytes"]),
    )
    return Table(("time", "rows/s", "tokens", "more memory"), (figures,))


def _plan(result: dict[str, Any]) -> Table:
    """A line per model and length, a column per case: planned over measured, and their ratio."""
    cases = list(dict.fromkeys(row["case"] for row in result["rows"]))
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        cell = "{} / {} = **{}**".format(*_against(result, row))
        found.setdefault(f"{row['shape']}, {row['tokens']} tokens", {})[row["case"]] = cell
    rows = tuple((model, *(cells.get(case, "–") for case in cases)) for model, cells in found.items())
    return Table(("planned / measured, GiB", *cases), rows)


def _wider_plan(result: dict[str, Any]) -> Table:
    rows = tuple((row["shape"], str(row["tokens"]), row["case"], *_against(result, row)) for row in result["rows"])
    return Table(("model", "tokens", "settings", "planned, GiB", "measured, GiB", "planned over measured"), rows)


def _against(result: dict[str, Any], row: dict[str, Any]) -> tuple[str, str, str]:
    """Planned and measured in GiB, and their ratio."""
    planned, taken = planned_bytes(result, row), row["measured_bytes"]
    return f"{planned / GIB:.2f}", f"{taken / GIB:.2f}", f"{planned / taken:.2f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
