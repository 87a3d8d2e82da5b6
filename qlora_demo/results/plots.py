"""Figures as inline SVG, drawn in the colour of the text around them, so they suit light, dark and paper."""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
import threading
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..records import TrainMetrics

Series = Mapping[str, Sequence[tuple[float, float]]]
_KEPT = 64
"""Bars that were drawn last: a run's panel shows the same ones at each of its steps, on each open page."""
_FEW = 10
"""More groups of bars than this are not labelled one by one."""
_LINE = 75
"""Characters side by side under all groups of bars."""
_LEGEND, _SIGN = 94, 8
"""Characters side by side in a legend, and those that a line's or bar's sign takes with the room around it."""
_LARGE, _SMALL, _ROOMY = 8, 6.5, 12
"""Points that values over bars are written in, the smaller where there are more bars than so many."""
_HEADROOM, _SMALLEST = 1.08, 1e-300
"""Of an axis over its highest bar, which a number that is nearly none gives no scale."""
_INK = "#010203"
"""Stands for the colour of the text around the figure until the SVG is written."""
_COLOURS = ("#d97706", "#3b82f6", "#059669", "#8b5cf6", "#dc2626", "#0891b2", "#65a30d", "#db2777")
_PAGE_WIDE = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>| id=\"[a-z0-9.]+_\d+\"", re.DOTALL)
"""What an SVG may have to itself as a file but not within a page: styles for everything, and names that repeat."""
_lock = threading.Lock()
"""The library's settings are one for all threads."""
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "legend.frameon": False,
    "grid.alpha": 0.25,
    "grid.color": _INK,
}


def lines(title: str, x_label: str, y_label: str, series: Series) -> str:
    """One line per series, of (x, y) points, with a gap where y is no number."""

    def draw(axes: Any) -> None:
        for name, points in series.items():
            x, y = zip(*((at, value if math.isfinite(value) else math.nan) for at, value in points), strict=True)
            axes.plot(x, y, label=name, marker="o" if len(points) < 30 else None, markersize=3, linewidth=1.4)
        _mark_whole(axes, {at for points in series.values() for at, _ in points})

    return _svg(title, x_label, y_label, draw, legend=len(series) > 1)


def _mark_whole(axes: Any, places: set[float]) -> None:
    """Steps and ranks are told in whole numbers."""
    if len(places) == 1:
        axes.set_xticks(list(places))
    elif all(float(at).is_integer() for at in places):
        axes.xaxis.get_major_locator().set_params(integer=True)


def curves(metrics: Sequence[TrainMetrics]) -> list[str]:
    """Training and held-out loss, and the learning rate, by step; what was not measured is left out."""
    losses = {
        "training": [(one.step, one.loss) for one in metrics if one.loss is not None],
        "held-out": [(one.step, one.eval_loss) for one in metrics if one.eval_loss is not None],
    }
    rates = {"learning rate": [(one.step, one.learning_rate) for one in metrics if one.learning_rate is not None]}
    wanted = (("Loss", "loss (nats per token)", losses), ("Learning rate", "learning rate", rates))
    drawn = ((title, label, {name: at for name, at in series.items() if at}) for title, label, series in wanted)
    return [lines(title, "step", label, series) for title, label, series in drawn if series]


def bars(
    title: str,
    y_label: str,
    groups: Mapping[str, Mapping[str, float]],
    x_label: str = "",
    mark: tuple[str, float] | None = None,
) -> str:
    """A group of bars per key, one bar per inner key with its value written on it, none where there is no value;
    ``mark``: a named line at a place among the groups, counted from 0, left out where it is beyond them."""
    return _bars(title, y_label, tuple((group, tuple(bars.items())) for group, bars in groups.items()), x_label, mark)


@functools.lru_cache(_KEPT)
def _bars(
    title: str,
    y_label: str,
    grouped: tuple[tuple[str, tuple[tuple[str, float], ...]], ...],
    x_label: str,
    mark: tuple[str, float] | None,
) -> str:
    groups = {group: dict(bars) for group, bars in grouped}
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    width = 0.8 / max(1, len(names))
    size = _LARGE if len(names) * len(groups) <= _ROOMY else _SMALL

    def draw(axes: Any) -> None:
        for at, name in enumerate(names):
            middle = [place + (at - (len(names) - 1) / 2) * width for place in range(len(groups))]
            drawn = axes.bar(
                middle, [values.get(name, math.nan) for values in groups.values()], width * 0.92, label=name
            )
            if len(groups) <= _FEW:
                axes.bar_label(drawn, fmt="{:.3g}", padding=2, fontsize=size)
        highest = max((value for values in groups.values() for value in values.values()), default=0)
        axes.set_ylim(0, _HEADROOM * highest if highest > _SMALLEST else 1)
        every = -(-len(groups) // _FEW)
        axes.set_xticks(range(0, len(groups), every), [_broken(name, len(groups)) for name in list(groups)[::every]])
        if mark and mark[1] <= len(groups):
            axes.axvline(mark[1], color=_INK, linestyle="--", linewidth=1)
            axes.annotate(mark[0], (mark[1], 1), xycoords=("data", "axes fraction"), fontsize=8, ha="right", va="top")

    return _svg(title, x_label, y_label, draw, legend=len(names) > 1)


def _broken(label: str, count: int) -> str:
    """A label in lines that so many can stand beside each other."""
    width = _LINE // min(count, _FEW)
    return "\n".join(textwrap.fill(line, width, break_long_words=False) for line in label.split("\n"))


def _svg(title: str, x_label: str, y_label: str, draw: Any, *, legend: bool) -> str:
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with _lock, rc_context({**_STYLE, "axes.prop_cycle": cycler(color=_COLOURS)}):
        figure = Figure(figsize=(6.4, 2.7), layout="constrained")
        axes = figure.subplots()
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        draw(axes)
        axes.set(title=title, xlabel=x_label, ylabel=y_label)
        if legend:
            longest = max(map(len, axes.get_legend_handles_labels()[1]))
            beside = max(1, _LEGEND // (_SIGN + longest))
            figure.legend(fontsize=8, loc="outside lower left", ncols=beside, borderaxespad=0)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = _PAGE_WIDE.sub("", drawn.getvalue()).replace(_INK, "currentColor")
    return text[text.index("<svg") :].replace("<svg ", f'<svg class="plot" role="img" aria-label="{escape(title)}" ', 1)
