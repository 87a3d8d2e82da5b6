"""Models that leave the house: an adapter, or a merge in 16 or again in 4 bit; compared, saved, reloaded, compared."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from ..errors import WrongModel
from ..memory import weight_bytes
from ..records import MergeBase, Message, Progress, Step
from ..sources import Origin, shape_of, weights_digest
from ..system.disk import draft_folder, require_free, require_new
from .evaluate import Conversation, Rows, divergences, fidelity_figures, that_fit
from .generate import encode
from .load import keep_exact, load_quantized
from .merge import load_merged, where_to_merge
from .variants import Loaded
from .weights import Weights

Card = Callable[[dict[str, Any]], str]
"""The model card for what was measured."""


@dataclass(frozen=True)
class ExportTarget:
    """A merge to be saved: onto which base, where, and whether it is quantized to NF4 again."""

    onto: MergeBase
    out: Path
    four_bit: bool


_NONE: list[list[Message]] = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]]
"""What is saved is still held to give what it gave, where a run has no row to measure it on."""


def export_adapter(origin: Origin, out: Path, card: Card) -> Generator[Step]:
    """Copy the adapter with a model card; `out` must not exist."""
    yield Step(Progress(f"copying to {out}", 0.2))
    with draft_folder(out) as draft:
        for path in sorted(origin.adapter.iterdir()):
            if path.is_file() and path.name != "README.md":
                shutil.copyfile(path, draft / path.name)
        (draft / "README.md").write_text(card({}), "utf-8")
    yield Step(Progress(f"saved to {out}", 1.0), {"path": str(out), "what": "adapter"})


def export_merged(origin: Origin, adapter: Loaded, rows: Rows, target: ExportTarget, card: Card) -> Generator[Step]:
    """Merge, compare with the adapter model on `rows`, save, reload what was saved and compare its logits.

    On the CPU where only that has room.  The folder must not exist, and appears only when it has been verified.
    """
    onto, out, four_bit = target.onto, target.out, target.four_bit
    size = weight_bytes(shape_of(origin.model), "16bit")
    if weights_digest(origin.model) != adapter.weights.digest:
        raise WrongModel(
            f"merged model: the files of {origin.model} are no longer those in memory; restore them, or press Free "
            "memory and train again"
        )
    require_new(out)
    require_free(out, 2 * size if four_bit else size, "the merged model")
    on = where_to_merge(origin.model)
    yield Step(Progress(f"merging onto the {onto} base ({on.type})", 0.1))
    model = load_merged(origin, onto, on)
    align_special_tokens(model, adapter.tokenizer)
    with draft_folder(out) as draft:
        if four_bit:
            yield Step(Progress("quantizing to NF4", 0.3))
            model = _quantized(model, draft / "bf16", on)
        yield Step(Progress("comparing with the adapter model", 0.4))
        merged = replace(adapter, weights=Weights(model, "", 0.0), adapter=None)
        rows = that_fit(adapter.model, adapter.tokenizer, rows) or _NONE
        measured = fidelity_figures(list(divergences(merged, adapter, rows))) if rows is not _NONE else {}
        expected = _logits(model, adapter.tokenizer, rows[0])
        yield Step(Progress(f"saving to {out}", 0.6))
        model.save_pretrained(draft)
        if adapter.tokenizer.is_fast:
            adapter.tokenizer.backend_tokenizer.no_padding()  # which it was asked for here
        adapter.tokenizer.save_pretrained(draft)
        (draft / "README.md").write_text(card(measured), "utf-8")
        del model, merged
        yield Step(Progress("reloading and comparing what was saved", 0.8))
        _verify(draft, expected, adapter.tokenizer, rows[0])
    what = "merged-4bit" if four_bit else "merged"
    result = {"path": str(out), "what": what, "onto": onto, "verified": True}
    result |= {"fidelity": measured} if measured else {}
    yield Step(Progress(f"saved to {out}", 1.0), result)


def _quantized(model: PreTrainedModel, scratch: Path, on: torch.device) -> PreTrainedModel:
    """The model read again in NF4, which is what the library can save."""
    model.save_pretrained(scratch)
    again = load_quantized(str(scratch), "exact", on=on)
    shutil.rmtree(scratch)
    return again


def _verify(folder: Path, expected: torch.Tensor, tokenizer: PreTrainedTokenizerBase, row: Conversation) -> None:
    """Raise `WrongModel` where the saved model is not, tensor for tensor and logit for logit, the one in memory."""
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": expected.device}, use_safetensors=True, output_loading_info=True
    )
    wrong = {kind: sorted(map(str, names)) for kind, names in loading.items() if names}
    if wrong:
        raise WrongModel(f"merged model: {folder} does not reload strictly ({wrong}); merge again")
    if not torch.equal(_logits(keep_exact(model).eval(), tokenizer, row), expected):
        raise WrongModel(f"merged model: what was saved to {folder} gives other logits; check the disk, merge again")


def _logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Conversation) -> torch.Tensor:
    inputs = {name: tensor.to(model.device) for name, tensor in encode(tokenizer, [row], answered=True).items()}
    with torch.inference_mode():
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits
