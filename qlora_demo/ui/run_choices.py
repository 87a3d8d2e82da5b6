"""What can be chosen of a run: its columns, prompts that it never trained on, its system prompt."""

from __future__ import annotations

from .. import columns as grammar
from ..catalog import BUNDLED_MODELS, VARIANTS
from ..errors import RunError
from ..records import Message
from ..rows import tickets
from ..runs import RunStore

_EXAMPLES = 6
_OTHER_RUNS = 20
_SPLITS: tuple[tickets.Split, ...] = ("test", "hard")
_OWN_COLUMNS = ("base", "adapter", "merged", "merged:original", "merged-4bit")
"""What a run offers; others can be typed."""


def column_choices(runs: RunStore, run: str | None) -> list[tuple[str, str]]:
    """What columns can be chosen: the run's own, then the adapters of others; of a bundled model, the base."""
    if not run:
        return []
    if run in BUNDLED_MODELS:
        return [(VARIANTS["base"], "base")]
    others = [other.id for other in runs.all() if other.has_adapter and other.id != run]
    texts = [*_OWN_COLUMNS, *(f"adapter@{other}" for other in others[:_OTHER_RUNS])]
    return [(grammar.title(grammar.parse(text, run), run), text) for text in texts]


def examples(runs: RunStore, run: str | None) -> tuple[list[str], str]:
    """Held-out prompts of a run, and the system prompt it was trained with; before any run, the bundled task's."""
    if not run:
        return [], ""
    rows = [row for split in _heldout(runs, run) for row in split[: _EXAMPLES // 2]]
    prompts = [next((m["content"] for m in reversed(row) if m["role"] == "user"), "") for row in rows]
    systems = [m["content"] for row in rows for m in row if m["role"] == "system"]
    return [text for text in prompts if text], systems[0] if systems else ""


def _heldout(runs: RunStore, run: str) -> list[list[list[Message]]]:
    if run not in BUNDLED_MODELS:
        return list(runs.heldout(run).values())
    return [[row["messages"] for row in tickets.rows(split, _EXAMPLES // 2)] for split in _SPLITS]


def needed_run(run: str | None) -> str:
    """The run that is chosen; refused where none is."""
    if not run:
        raise RunError("run: none is finished yet; train one on the Train tab")
    return run
