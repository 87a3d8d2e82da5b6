"""What training would see of a data set, before anything is trained: counts, lengths, problems, the rendered template.

It reads row by row and keeps no more of each than a few numbers, so a large file takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from ..catalog import TICKETS
from ..config import TrainConfig, column_mapping
from ..errors import ConfigError, DataError, one_line
from ..records import Progress, Step, percentile_95
from ..rows.files import FoundRow
from ..rows.formats import Row, detect, out_of_order
from ..rows.problems import Problem
from ..settings import Settings
from ..sources import resolve
from ..system.halt import Halt
from ..units import counted
from .data import bundled_splits, heldout_places, iter_rows, row_digest, to_prompt_completion, trained_places, usable
from .load import load_tokenizer

Pieces = list[tuple[str, bool]]
"""A row's rendered text in parts, and whether each is trained."""
_BATCH = 512
_BINS = 20
_RENDERED = 3


@dataclass(frozen=True)
class _Rendered:
    """A row as text; ``marks`` are the characters that the template says are the assistant's, where that is asked."""

    where: str
    row: Row
    text: str
    marks: Sequence[tuple[int, int]] = ()


@dataclass
class _Seen:
    """What is kept of the rows that were read."""

    problems: dict[str, Problem] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)
    first: Row | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    rendered: list[Pieces] = field(default_factory=list)

    def note(self, kind: str, where: str, fault: str = "", *, fatal: bool = False) -> None:
        self.problems.setdefault(kind, Problem(kind, fatal)).add(where, fault)


def preflight(config: TrainConfig, settings: Settings, halt: Halt) -> Iterator[Step]:
    """Read every row; the last step's result is whole: ``rows``, ``mapping``, ``lengths``, ``problems``, ``rendered``,
    ``loss_on``, ``fatal`` (what must be fixed, or empty).  Raises `DataError` where the data cannot be read at all,
    `ConfigError` where the template does not mark what would be trained."""
    tokenizer = load_tokenizer(resolve(settings, config.model))
    if config.loss_on == "assistant":
        mark_answers(tokenizer)
    seen = _Seen()
    found = _rows(config)
    while batch := list(islice(found, _BATCH)):
        _look_at(batch, config, tokenizer, seen)
        yield Step(Progress(counted(len(seen.lengths), "row")))
        if halt.is_set():
            return
    _look_at_all(config, seen)
    yield Step(Progress(counted(len(seen.lengths), "row"), 1.0), _result(config, seen))


def mark_answers(tokenizer: Any) -> None:
    """Give the tokenizer a template that marks the assistant's tokens, as the trainer would; raises `ConfigError`."""
    if has_generation_markers(tokenizer.chat_template):
        return
    try:
        tokenizer.chat_template = get_training_chat_template(tokenizer)
    except ValueError as exc:
        cause = one_line(exc)
        raise ConfigError("loss_on", f"assistant cannot be used here ({cause}); choose completion") from exc


def _rows(config: TrainConfig) -> Iterator[FoundRow]:
    if config.dataset != TICKETS.name:
        yield from iter_rows(config)
        return
    for number, row in enumerate(bundled_splits().train, 1):
        yield FoundRow(f"{TICKETS.name}, row {number}", row)


def _look_at(batch: Sequence[FoundRow], config: TrainConfig, tokenizer: Any, seen: _Seen) -> None:
    rows: list[_Rendered] = []
    for found in batch:
        seen.mapping = seen.mapping or detect(found.row) | column_mapping(config.columns)
        place = found.where.rpartition(", ")[2]
        try:
            row = usable(found, config, seen.first)
            seen.first = seen.first or row
            rows.append(_rendered(place, row, config, tokenizer))
        except DataError as exc:
            told = str(exc).removeprefix("dataset: ").replace(found.where, place)
            seen.note("unusable", place, told.removeprefix(place), fatal=True)
    for one, (length, kept) in zip(rows, _measured(tokenizer, rows, config.max_length), strict=True):
        _look_at_row(one, config, seen)
        seen.lengths.append(length)
        _look_at_end(one, kept if length > config.max_length else None, config, tokenizer, seen)
        if len(seen.rendered) < _RENDERED and tokenizer.is_fast:
            seen.rendered.append(_pieces(one, config, tokenizer))


def _rendered(where: str, row: Row, config: TrainConfig, tokenizer: Any) -> _Rendered:
    """A row as the trainer renders it, which ends plain text with a stop token; raises `DataError`."""
    if "text" in row:
        stop = tokenizer.eos_token or ""
        return _Rendered(where, row, row["text"] if row["text"].endswith(stop) else row["text"] + stop)
    try:
        if config.loss_on != "assistant":
            _render_prompts(row, config, tokenizer)
            return _Rendered(where, row, str(tokenizer.apply_chat_template(row["messages"], tokenize=False)))
        how = {"chat_template": tokenizer.get_chat_template(), **tokenizer.special_tokens_map}
        texts, marks = render_jinja_template([row["messages"]], return_assistant_tokens_mask=True, **how)
        return _Rendered(where, row, texts[0], marks[0])
    except TemplateError as exc:
        raise DataError(f"{where}: the model's chat template refuses it ({exc}); correct its turns") from exc


def _render_prompts(row: Row, config: TrainConfig, tokenizer: Any) -> None:
    """Render what training would of a row whose turns are out of order: a template may take it as a whole and refuse
    the turns before one of its answers."""
    if config.loss_on == "completion" and out_of_order(row["messages"]):
        for example in to_prompt_completion(row):
            _prompt(tokenizer, example)


def _measured(tokenizer: Any, rows: Sequence[_Rendered], max_length: int) -> Iterator[tuple[int, int]]:
    """Tokens of each row, and how many characters `max_length` of them are, where it has more.  The library's own call
    would also build what is not needed here."""
    texts = [one.text for one in rows]
    special = any("text" in one.row for one in rows)
    if tokenizer.is_fast:
        for one in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=special):
            yield len(one), max(one.offsets[:max_length])[1] if len(one) > max_length else 0
        return
    for text in texts:
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        yield len(ids), len(tokenizer.decode(ids[:max_length]))


def _look_at_row(one: _Rendered, config: TrainConfig, seen: _Seen) -> None:
    seen.digests.append(row_digest(one.row))
    seen.places.append(one.where)
    if "\ufffd" in one.text:
        seen.note("encoding", one.where)
    if "messages" in one.row and out_of_order(one.row["messages"]):
        seen.note("order", one.where)
    if config.loss_on == "completion" and _is_unasked(one.row):
        seen.note("unasked", one.where)


def _look_at_end(one: _Rendered, cut: int | None, config: TrainConfig, tokenizer: Any, seen: _Seen) -> None:
    """A row that loses what stands behind `cut` characters, all that is trained of it, or the token that stops its last
    answer; trained turn by turn, a turn of it may be left."""
    kept = len(one.text) if cut is None else cut
    begun = [span for span in _answers(one, cut is None, config, tokenizer) if span[0] < kept]
    dropped = not begun and config.loss_on != "all"
    seen.kept.append(not dropped)
    if cut is not None:
        seen.note("dropped" if dropped else "cut", one.where)
    answer, stop = one.text[begun[-1][0] : min(begun[-1][1], kept)] if begun else "", tokenizer.eos_token
    stopped = stop and (answer.endswith(stop) if "text" in one.row else stop in answer)
    if not stopped and not dropped:
        seen.note("stop", one.where)


def _answers(one: _Rendered, whole: bool, config: TrainConfig, tokenizer: Any) -> Sequence[tuple[int, int]]:
    """Where in a row's text its answers begin and end.  Prompts are rendered only where it matters: of a `whole` row
    that ends with the stop token, or has none, everything tells as much as the last answer does."""
    stop = tokenizer.eos_token or ""
    if config.loss_on == "assistant" and "messages" in one.row:
        return one.marks
    examples = to_prompt_completion(one.row)
    if config.loss_on == "completion" and not examples:
        return []
    if "text" in one.row or (whole and (stop not in one.text or one.text.rstrip().endswith(stop))):
        return [(0, len(one.text))]
    opening = [0] if config.loss_on == "all" and _is_unasked(one.row) else []
    return [(at, len(one.text)) for at in (*opening, *(len(_prompt(tokenizer, example)) for example in examples))]


def _is_unasked(row: Row) -> bool:
    return "messages" in row and row["messages"][0]["role"] == "assistant"


def _look_at_all(config: TrainConfig, seen: _Seen) -> None:
    """What only shows across rows: the same row twice, the same row on both sides of the split, nothing left of one."""
    count, bundled = len(seen.digests), config.dataset == TICKETS.name
    held = frozenset() if bundled or count < 2 else heldout_places(count, config)
    trained = frozenset(trained_places(seen.digests, held))
    if not bundled:
        _note_copies(trained, held, seen)
    if (count < 2 or not trained) and "unusable" not in seen.problems:
        what = f"{config.dataset} holds {count} usable rows, of which {len(trained)} are left to train on"
        seen.note("unusable", f"{what}; give at least 2 that differ", fatal=True)
    if "unusable" in seen.problems:  # mended, the rows are split otherwise
        return
    for kind, side in (("untrained", trained), ("unmeasured", held)):
        if not any(seen.kept[at] for at in side):
            for at in sorted(side):
                seen.note(kind, seen.places[at], fatal=True)


def _note_copies(trained: frozenset[int], held: frozenset[int], seen: _Seen) -> None:
    before: set[int] = set()
    for at, digest in enumerate(seen.digests):
        if digest in before:
            seen.note("duplicate", seen.places[at])
        before.add(digest)
        if at not in trained and at not in held:
            seen.note("leak", seen.places[at])


def _result(config: TrainConfig, seen: _Seen) -> dict[str, Any]:
    lengths = sorted(seen.lengths) or [0]
    problems = sorted(seen.problems.values(), key=lambda one: (not one.fatal, -one.count))
    return {
        "rows": len(seen.lengths),
        "mapping": seen.mapping,
        "max_length": config.max_length,
        "loss_on": config.loss_on,
        "lengths": {
            "mean": sum(lengths) / len(lengths),
            "median": lengths[len(lengths) // 2],
            "p95": int(percentile_95(lengths)),
            "longest": lengths[-1],
            "histogram": _histogram(seen.lengths),
        },
        "problems": [one.told() for one in problems],
        "fatal": _fatal(config, problems),
        "rendered": seen.rendered,
    }


def _fatal(config: TrainConfig, problems: Sequence[Problem]) -> str:
    """The first problem that must stop a start, in one line; empty where there is none."""
    found = (f"{one.first()} ({one.what}: {counted(one.count, 'row')})" for one in problems if one.fatal)
    return next((f"{config.dataset}, {first}" for first in found), "")


def _histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(upper bound in tokens, rows) of equal bins."""
    width = max(1, -(-max(lengths, default=0) // _BINS))
    counts = [0] * _BINS
    for length in lengths:
        counts[min(_BINS - 1, max(0, length - 1) // width)] += 1
    return [((at + 1) * width, count) for at, count in enumerate(counts)]


def _prompt(tokenizer: Any, example: Row) -> str:
    """The rendered turns before an answer, up to where it begins; empty where none lead to it."""
    if not example.get("prompt"):
        return ""
    return str(tokenizer.apply_chat_template(example["prompt"], tokenize=False, add_generation_prompt=True))


def _pieces(one: _Rendered, config: TrainConfig, tokenizer: Any) -> Pieces:
    """A row's rendered text in runs of tokens that are trained, or not; where turns are trained one by one, the last
    turn's view of it."""
    text = one.text
    encoded = tokenizer(text, add_special_tokens="text" in one.row, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    pieces: Pieces = []
    for at, ((start, end), chosen) in enumerate(
        zip(offsets, _chosen(tokenizer, one.row, config, len(offsets)), strict=True)
    ):
        trained = chosen and at < config.max_length
        if pieces and pieces[-1][1] == trained:
            pieces[-1] = (pieces[-1][0] + text[start:end], trained)
        else:
            pieces.append((text[start:end], trained))
    return pieces


def _chosen(tokenizer: Any, row: Row, config: TrainConfig, count: int) -> list[bool]:
    """Which of a row's tokens the loss is on, whatever its length."""
    if config.loss_on == "assistant" and "messages" in row:
        how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        return list(map(bool, tokenizer.apply_chat_template(row["messages"], **how)["assistant_masks"]))
    examples = to_prompt_completion(row) if config.loss_on == "completion" else [row]
    if not examples:
        return [False] * count
    prompt = len(tokenizer(_prompt(tokenizer, examples[-1]), add_special_tokens=False)["input_ids"])
    return [at >= prompt for at in range(count)]
