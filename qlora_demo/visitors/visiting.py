"""What a visitor may ask of the models, beside the limits on how often.

A visitor chooses among the finished runs of this home, and nothing that a visitor does takes a model out of memory:
what is resident answers, what is not is loaded where it fits beside the rest.  Folders and hub ids are for operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..columns import is_bundled, title
from ..config import GenerationSettings
from ..errors import ConfigError, NoRoom, RunError
from ..plan.placement import Placement, unit_name
from ..records import Column, Message
from ..runs import RunStore
from ..settings import Limits, variable


def finished_only(runs: RunStore, columns: Sequence[Column]) -> None:
    """Raises `RunError` where a column is neither of a finished run nor a bundled model as it is."""
    for column in columns:
        if is_bundled(column):
            continue
        try:
            run = runs.get(column.source)
            known = run.has_adapter and run.state.ended
        except RunError:
            known = False
        if not known:
            raise RunError(f"columns: {column.name!r} is of no finished run here, and visitors choose among those only")


def evicts_nothing(plan: Callable[[Sequence[Column]], Placement], columns: Sequence[Column]) -> None:
    """Raises `NoRoom` where loading the columns would take others out of memory."""
    if evicted := plan(columns).evict:
        names = ", ".join(unit_name(unit) for unit, _ in evicted)
        wanted = ", ".join(title(column) for column in columns)
        raise NoRoom(f"columns: {wanted} would push out {names}, which only operators may; choose what is loaded")


def short_enough(limits: Limits, settings: GenerationSettings, conversations: Sequence[Sequence[Message]]) -> None:
    """Raises `ConfigError` that names the first limit which the tokens wanted or a conversation is over."""
    _at_most("max_new_tokens", settings.max_new_tokens, limits, "visitor_new_tokens", "ask for fewer")
    for conversation in conversations:
        for said in conversation:
            if said["role"] != "assistant":
                field = "prompt" if said["role"] == "user" else "system prompt"
                _at_most(field, len(said["content"]), limits, "visitor_prompt_chars", "shorten it")
        total = sum(len(said["content"]) for said in conversation)
        _at_most("conversation", total, limits, "visitor_talk_chars", "begin a new one with Clear")


def _at_most(field: str, value: int, limits: Limits, limit: str, remedy: str) -> None:
    most: int = getattr(limits, limit)
    if value > most:
        unit = "tokens" if limit == "visitor_new_tokens" else "characters"
        raise ConfigError(field, f"{value} {unit} are more than the {most} of {variable(limit)}; {remedy}")
