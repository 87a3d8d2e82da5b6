"""Figures for people: the same table everywhere, plots that a page can hold several of."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

import pytest

from qlora_demo.benchmark.plots import figures
from qlora_demo.records import TrainMetrics
from qlora_demo.results import plots, tables

RESULT = {
    "splits": {
        "test": {"base": {"rows": 1200, "loss": 2.0, "exact_match": 0.0}, "adapter": {"rows": 2, "loss": 0.123456}},
        "hard": {"adapter": {"rows": 2, "loss": 0.5, "exact_match": 0.5, "fields": {"total": 0.25}}},
    }
}


def test_an_evaluation_has_a_row_per_split_and_column_and_only_figures_that_exist() -> None:
    table = tables.evaluation(RESULT)
    assert table.head == ("split", "column", "rows", "loss (nats per token)", "exact match", "95% interval")
    assert table.rows == (
        ("test", "base", "1,200", "2", "0.0%", "0.0% to 0.3%"),
        ("test", "adapter", "2", "0.123", "–", "–"),
        ("hard", "adapter", "2", "0.5", "50.0%", "9.5% to 90.5%"),
    )
    known = tables.evaluation(RESULT | {"weights": {"base": "bf16, the model before training"}})
    assert known.head[:3] == ("split", "column", "weights")
    assert [row[2] for row in known.rows] == ["bf16, the model before training", "–", "–"]
    assert tables.fields(RESULT).rows == (("hard", "adapter", "25.0%"),)
    assert tables.exact_match(RESULT) == {"base": {"test": 0.0}, "adapter": {"hard": 50.0}}


def test_fidelity_shows_changes_with_their_sign() -> None:
    merges = {"merged:original": {"kl_mean": 0.0812, "loss_change": 0.01, "exact_match_change": -0.094, "rows": 32}}
    rows = {label: figure for label, figure in tables.fidelity({"merges": merges}).rows}  # noqa: C416 - two cells each
    assert rows["mean KL divergence (nats)"] == "0.081"
    assert rows["change in loss (nats per token)"] == "+0.0100"
    assert rows["change in exact match"] == "-9.4 points"
    assert "identical greedy answers" not in rows, "which was not measured"


def test_nothing_measured_is_no_table() -> None:
    for empty in (tables.evaluation(None), tables.fields({}), tables.fidelity(None)):
        assert tables.html(empty) == ""
    assert tables.remarks(None) == tables.remarks({"left_out": 0}) == ""


def test_markdown_is_a_line_per_row_under_the_head() -> None:
    table = tables.Table(("", "n"), (("a", "1"), ("b", "2")))
    assert tables.markdown(table).splitlines() == ["|  | n |", "| --- | --- |", "| a | 1 |", "| b | 2 |"]


def test_cells_are_escaped() -> None:
    drawn = tables.html(tables.Table(("<a>",), (("<b>", "<c>"),)))
    assert "&lt;a&gt;" in drawn and "&lt;b&gt;" in drawn and "&lt;c&gt;" in drawn


def text_of(svg: str) -> list[str]:
    return [(node.text or "").strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")]


def test_plots_have_titles_axes_and_the_text_as_text() -> None:
    drawn = plots.lines(
        "Loss <b> $x^2$", "step", "loss (nats)", {"training": [(1, 2.0), (2, 1.0)], "held-out": [(2, 1.5)]}
    )
    assert {"Loss <b> $x^2$", "step", "loss (nats)", "training", "held-out"} <= set(text_of(drawn))
    assert {"96.2", "0", "test", "base"} <= set(
        text_of(plots.bars("Score", "percent", {"base": {"test": 0.0}, "adapter": {"test": 96.2, "hard": 77.0}}))
    )


def test_labels_and_values_of_many_bars_keep_apart() -> None:
    names = (
        "LoRA\n16 bit",
        "QLoRA\nNF4",
        "LoRA\ncheckpointing",
        "QLoRA\ncheckpointing",
        "QLoRA\nconstants not quantized",
    )
    few, many = ({name: dict.fromkeys(phases, 1.25) for name in names} for phases in ("ab", "abcd"))
    assert "constants not quantized" not in text_of(plots.bars("Peak", "GiB", few))
    assert {"constants not", "quantized", "checkpointing"} <= set(text_of(plots.bars("Peak", "GiB", few)))
    sizes = [
        min(map(float, re.findall(r"font-size: ([\d.]+)px", plots.bars("Peak", "GiB", one)))) for one in (few, many)
    ]
    assert sizes[1] < sizes[0], "smaller where they are closer"


def test_a_legend_has_lines_of_its_own() -> None:
    names = ("LoRA, 16 bit", "QLoRA, constants not quantized", "QLoRA, checkpointing")
    title = "A title that is so long that it goes on over the whole figure"
    drawn = plots.lines(title, "x", "y", {name: [(1, 2)] for name in names})
    at = {node.text: (float(node.get("x") or 0), float(node.get("y") or 0)) for node in ET.fromstring(drawn).iter()}
    others = {at[text][1] for text in at if text and text not in names}
    assert not others & {at[name][1] for name in names}
    assert at[names[0]][0] == at[names[1]][0] < at[names[2]][0], "as many beside each other as there is room for"


def test_what_was_not_measured_has_no_bar() -> None:
    drawn = text_of(plots.bars("Score", "percent", {"base": {"test": 10.0, "hard": 20.0}, "adapter": {"test": 90.0}}))
    assert drawn.count("0") == 1, "of the axis alone"
    assert {"10", "20", "90"} <= set(drawn)


def test_curves_hold_both_losses_and_the_rate_and_leave_out_what_was_not_measured() -> None:
    steps = [TrainMetrics(at, 1.0, loss=1 / at, learning_rate=1e-4) for at in (1, 2)]
    losses, rates = plots.curves([*steps, TrainMetrics(2, 2.0, eval_loss=0.5)])
    assert {"training", "held-out", "step", "loss (nats per token)"} <= set(text_of(losses))
    assert {"Learning rate", "step"} <= set(text_of(rates))
    (only,) = plots.curves([TrainMetrics(2, 2.0, eval_loss=0.5)])
    assert "Loss" in text_of(only)
    assert plots.curves([]) == []


@pytest.mark.parametrize(("places", "told"), [((2,), ["2"]), ((1, 2, 3, 4), ["1", "2", "3", "4"])])
def test_steps_and_ranks_are_told_in_whole_numbers(places: tuple[int, ...], told: list[str]) -> None:
    drawn = text_of(plots.lines("Speed", "rank", "tokens/s", {"a": [(at, 7000.5) for at in places]}))
    assert [text for text in drawn if text.replace(".", "").isdecimal() and float(text) < 100] == told


def test_a_loss_that_is_no_number_is_a_gap() -> None:
    drawn = plots.lines("Loss", "step", "loss", {"a": [(1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)]})
    assert "nan" not in drawn and "inf" not in drawn and "Loss" in text_of(drawn)


def test_plots_take_the_colour_of_the_text_and_nothing_of_theirs_reaches_the_page() -> None:
    first, second = (plots.bars(name, "percent", {"base": {"test": 1.0}}) for name in "ab")
    assert "currentColor" in first and "#010203" not in first and "<style" not in first
    assert not {*re.findall(r' id="([^"]+)"', first)} & {*re.findall(r' id="([^"]+)"', second)}


def test_plots_are_drawn_from_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda at: plots.lines(f"plot {at}", "x", "y", {"a": [(0, at)]}), range(8)))
    assert all(f"plot {at}" in text_of(svg) for at, svg in enumerate(drawn))


FITS = {
    **{"case": "LoRA, 16 bit", "fits": True, "longest_row": 64, "planned_longest_row": 60},
    "largest_batch": 4,
    "planned_largest_batch": 3,
}
ANSWERED = {"case": "base", "fits": True, "ttft_median_seconds": 0.25, "tpot_median_seconds": 0.05}


def test_a_frontier_is_drawn_in_tokens_and_rows_beside_the_plan() -> None:
    longest, largest = figures({"kind": "frontier", "rows": [FITS, {"case": "b", "fits": False}]})
    told = {"LoRA", "16 bit", "measured", "planned"}
    assert told | {"Longest row that trains within the budget", "tokens", "64", "60"} <= set(text_of(longest))
    assert told | {"Largest batch that trains within the budget", "rows", "4", "3"} <= set(text_of(largest))


def test_latencies_are_drawn_in_milliseconds_by_prompt_and_speed_by_batch() -> None:
    sizes = [(tokens, rows) for tokens in (8, 32) for rows in (1, 2)]
    rows = [ANSWERED | {"prompt_tokens": tokens, "batch": rows, "tokens_per_second": 20.0} for tokens, rows in sizes]
    first, each, speed = figures({"kind": "inference", "rows": rows})
    assert {"Time to first token, batch 1", "prompt (tokens)", "milliseconds", "250"} <= set(text_of(first))
    assert {"Time per output token, batch 1", "prompt (tokens)", "milliseconds", "50"} <= set(text_of(each))
    assert {"Decoding speed by batch, prompts of 8 tokens", "batch (rows)", "tokens/s"} <= set(text_of(speed))


def test_bars_begin_at_nothing_also_where_all_are_nothing() -> None:
    ticks = re.findall(r">([−\d.]+)</text>", plots.bars("t", "%", {"base": {"test": 0.0}, "adapter": {"test": 0.0}}))
    assert ticks and not [one for one in ticks if "−" in one]


def test_a_mark_is_drawn_among_the_groups_and_remarks_beyond_them() -> None:
    groups = {str(top): {"rows": 1.0} for top in (10, 20, 30)}
    assert "max_length" in plots.bars("t", "rows", groups, "tokens", ("max_length", 1.5))
    assert "max_length" not in plots.bars("t", "rows", groups, "tokens", ("max_length", 9.0))


def test_bars_that_were_drawn_are_not_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's panel shows the lengths of its rows at each step, on each open page."""
    first = plots.bars("b", "y", {"g": {"n": 0.123}})
    with monkeypatch.context() as patch:
        patch.setattr(plots, "_svg", lambda *_, **__: pytest.fail("drawn again"))
        assert plots.bars("b", "y", {"g": {"n": 0.123}}) == first
    assert plots.bars("b", "y", {"g": {"n": 0.124}}) != first
