"""Held-out loss and task scores of a variant, and how far one variant's distributions are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..config import GenerationSettings
from ..records import Message
from ..scoring import Score, score, summarize
from .generate import complete, encode
from .variants import Loaded

Conversation = Sequence[Message]
Rows = Sequence[Conversation]
ANSWER_TOKENS = 128
"""Longest greedy answer that is scored; a longer one is cut and, being incomplete, wrong."""
_ANSWER_BATCH = 25
_LOGITS_BATCH = 4


@dataclass(frozen=True)
class Targets:
    """A model's view of the reference answers, tokens of all rows in one line.

    ``log_probs``: (tokens, vocabulary) in fp32; ``ids``: the reference tokens, (tokens,).
    """

    log_probs: torch.Tensor
    ids: torch.Tensor


def evaluate(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Iterator[dict[str, Any]]:
    """Yield the figures over the rows done so far, after each batch; the last ones are over all rows.

    loss, perplexity, token_accuracy: over the reference answers' tokens, each given the ones before it.
    exact_match and, for JSON answers, valid_json and fields: of greedy answers.
    """
    loss, correct, tokens = 0.0, 0, 0
    scores: list[Score] = []
    for batch in _batches(rows, _ANSWER_BATCH):
        for targets in reference_targets(loaded, tokenizer, batch):
            picked = targets.log_probs.gather(1, targets.ids[:, None])
            loss -= float(picked.sum())
            correct += int((targets.log_probs.argmax(dim=1) == targets.ids).sum())
            tokens += len(targets.ids)
        scores += _answer_scores(loaded, tokenizer, batch)
        mean = loss / tokens
        yield {
            "loss": mean,
            "perplexity": math.exp(min(mean, 700)),
            "token_accuracy": correct / tokens,
            **summarize(scores),
        }


def fidelity(model: Loaded, reference: Loaded, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> dict[str, float]:
    """How close `model` is to `reference` on the reference answers' tokens.

    kl_mean, kl_worst: KL(reference || model) of next-token distributions in nats, over tokens.
    top1_agreement: share of tokens where both prefer the same one.
    """
    divergences, agreements = [], []
    pairs = zip(reference_targets(reference, tokenizer, rows), reference_targets(model, tokenizer, rows), strict=True)
    for theirs, ours in pairs:
        divergence = functional.kl_div(ours.log_probs, theirs.log_probs, reduction="none", log_target=True).sum(dim=1)
        divergences.append(divergence.clamp(min=0))
        agreements.append(ours.log_probs.argmax(dim=1) == theirs.log_probs.argmax(dim=1))
    divergence = torch.cat(divergences)
    return {
        "rows": len(rows),
        "tokens": len(divergence),
        "kl_mean": float(divergence.mean()),
        "kl_worst": float(divergence.max()),
        "top1_agreement": float(torch.cat(agreements).float().mean()),
    }


def reference_targets(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> Iterator[Targets]:
    """The model's next-token distributions over each row's last message, a few rows at a time."""
    for batch in _batches(rows, _LOGITS_BATCH):
        prompts = [encode(tokenizer, [row[:-1]])["input_ids"].shape[1] for row in batch]
        inputs = encode(tokenizer, batch, answered=True)
        mask = inputs["attention_mask"]
        answers = [int(length) - prompt for length, prompt in zip(mask.sum(dim=1), prompts, strict=True)]
        longest = max(answers)
        with torch.inference_mode(), loaded.activate():
            logits = loaded.model(
                **{name: tensor.to(loaded.model.device) for name, tensor in inputs.items()},
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0).to(loaded.model.device),
                logits_to_keep=longest + 1,
                use_cache=False,
            ).logits
        for row, answer in enumerate(answers):
            ids = inputs["input_ids"][row, -answer:]
            yield Targets(logits[row, -answer - 1 : -1].float().log_softmax(dim=-1).cpu(), ids)


def _answer_scores(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, rows: Rows) -> list[Score]:
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS)
    answers = complete(loaded.model, tokenizer, [row[:-1] for row in rows], settings, loaded.activate)
    return [score(answer, row[-1]["content"]) for answer, row in zip(answers, rows, strict=True)]


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
