"""Held-out loss and task scores of a column, and how far one column's distributions are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

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
    """A model's view of one row's reference answer, or of the whole row, of which the last tokens are the answer.

    ``log_probs``: (tokens, vocabulary) in fp32; ``ids``: the row's own tokens there, (tokens,).
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    answer_tokens: int

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the reference, summed over its tokens, in nats."""
        return -float(self.log_probs.gather(1, self.ids[:, None]).sum())

    @property
    def correct(self) -> int:
        """Tokens that the model would have chosen itself."""
        return int((self.log_probs.argmax(dim=1) == self.ids).sum())


@dataclass(frozen=True)
class RowResult:
    """One held-out row: its greedy answer and score, and what the reference answer's tokens cost."""

    answer: str
    score: Score
    nll: float
    correct: int
    tokens: int


@dataclass(frozen=True)
class Divergence:
    """KL(reference || model) in nats at each token of one row, and where both prefer the same token; the last
    ``answer_tokens`` are the reference answer's."""

    kl: torch.Tensor
    agree: torch.Tensor
    answer_tokens: int


def evaluate(loaded: Loaded, rows: Rows) -> Iterator[list[RowResult]]:
    """Yield the results of each batch of rows."""
    for batch in _batches(rows, _ANSWER_BATCH):
        answers = greedy_answers(loaded, batch)
        targets = reference_targets(loaded, batch)
        yield [
            RowResult(answer, score(answer, row[-1]["content"]), target.nll, target.correct, len(target.ids))
            for answer, row, target in zip(answers, batch, targets, strict=True)
        ]


def figures(results: Sequence[RowResult]) -> dict[str, Any]:
    """loss, perplexity, token_accuracy over the reference answers' tokens, each given the ones before it; exact_match,
    and what else applies to the task (valid_json, fields, rouge_l), of greedy answers."""
    tokens = sum(one.tokens for one in results)
    loss = sum(one.nll for one in results) / tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "token_accuracy": sum(one.correct for one in results) / tokens,
        **summarize([one.score for one in results]),
    }


def divergences(model: Loaded, reference: Loaded, rows: Rows) -> Iterator[Divergence]:
    """How far `model` is from `reference` on each row, prompt and reference answer."""
    pairs = zip(reference_targets(reference, rows, whole=True), reference_targets(model, rows, whole=True), strict=True)
    for theirs, ours in pairs:
        kl = functional.kl_div(ours.log_probs, theirs.log_probs, reduction="none", log_target=True).sum(dim=1)
        agree = ours.log_probs.argmax(dim=1) == theirs.log_probs.argmax(dim=1)
        yield Divergence(kl.clamp(min=0), agree, ours.answer_tokens)


def fidelity_figures(found: Sequence[Divergence]) -> dict[str, float]:
    """kl_mean, kl_worst: over all tokens of the rows, in nats; kl_answer_mean: over the answers' tokens only.
    top1_agreement: share of all tokens where both prefer the same one."""
    kl = torch.cat([one.kl for one in found])
    answers = torch.cat([one.kl[-one.answer_tokens :] for one in found])
    return {
        "rows": len(found),
        "tokens": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_worst": float(kl.max()),
        "kl_answer_mean": float(answers.mean()),
        "top1_agreement": float(torch.cat([one.agree for one in found]).float().mean()),
    }


def reference_targets(loaded: Loaded, rows: Rows, *, whole: bool = False) -> Iterator[Targets]:
    """The model's next-token distributions over each row's last message, or the whole row, a few rows at a time."""
    for batch in _batches(rows, _LOGITS_BATCH):
        prompts = [encode(loaded.tokenizer, [row[:-1]])["input_ids"].shape[1] for row in batch]
        inputs = encode(loaded.tokenizer, batch, answered=True)
        mask = inputs["attention_mask"]
        lengths = mask.sum(dim=1).tolist()
        answers = [length - prompt for length, prompt in zip(lengths, prompts, strict=True)]
        kept = [length - 1 for length in lengths] if whole else answers
        with torch.inference_mode(), loaded.activate():
            logits = loaded.model(
                **{name: tensor.to(loaded.model.device) for name, tensor in inputs.items()},
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0).to(loaded.model.device),
                logits_to_keep=max(kept) + 1,
                use_cache=False,
            ).logits
        for row, count in enumerate(kept):
            ids = inputs["input_ids"][row, -count:]
            yield Targets(logits[row, -count - 1 : -1].float().log_softmax(dim=-1).cpu(), ids, answers[row])


def greedy_answers(loaded: Loaded, rows: Rows) -> list[str]:
    """The column's own answers to the rows' prompts."""
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS)
    return complete(loaded.model, loaded.tokenizer, [row[:-1] for row in rows], settings, loaded.activate)


def _batches(rows: Rows, size: int) -> Iterator[Rows]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
