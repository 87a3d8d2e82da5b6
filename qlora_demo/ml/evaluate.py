"""Held-out loss and task scores of a column, and how far one column's distributions are from another's."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config import GenerationSettings
from ..records import Message
from ..results.scoring import Score, score, summarize
from .generate import Activate, complete, encode
from .load import context_length
from .variants import Loaded

Conversation = Sequence[Message]
Rows = Sequence[Conversation]
ANSWER_TOKENS = 128
"""Longest greedy answer that is scored; a longer one is cut and, being incomplete, wrong."""
ANSWER_BATCH = 25
"""How many rows are answered together."""
_LOGITS_BATCH = 4


@dataclass(frozen=True)
class Targets:
    """A model's view of one row from its reference answer on, or of the whole row.

    ``log_probs``: (tokens, vocabulary) in fp32; ``ids``: the row's own tokens there, (tokens,); ``answer``: which of
    them are the reference answer's, its stop token among them, but not what the chat template writes around it.
    """

    log_probs: torch.Tensor
    ids: torch.Tensor
    answer: slice

    @property
    def nll(self) -> float:
        """Negative log-likelihood of the reference answer, summed over its tokens, in nats."""
        return -float(self.log_probs[self.answer].gather(1, self.ids[self.answer, None]).sum())

    @property
    def correct(self) -> int:
        """Tokens of the answer that the model would have chosen itself."""
        return int((self.log_probs[self.answer].argmax(dim=1) == self.ids[self.answer]).sum())


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
    """KL(reference || model) in nats at each token of one row, where both prefer the same token, and which are the
    reference answer's."""

    kl: torch.Tensor
    agree: torch.Tensor
    answer: slice


def evaluate(loaded: Loaded, rows: Rows) -> Iterator[list[RowResult]]:
    """Yield the results of each batch of rows."""
    for batch in batches(rows, ANSWER_BATCH):
        answers = greedy_answers(loaded.model, loaded.tokenizer, batch, loaded.activate)
        targets = reference_targets(loaded, batch)
        yield [
            RowResult(
                answer, score(answer, row[-1]["content"]), target.nll, target.correct, len(target.ids[target.answer])
            )
            for answer, row, target in zip(answers, batch, targets, strict=True)
        ]


def figures(results: Sequence[RowResult]) -> dict[str, Any]:
    """loss, perplexity, token_accuracy over the reference answers' tokens up to the one that stops, each given those
    before it; exact_match, and what else applies to the task (valid_json, fields, rouge_l), of greedy answers."""
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
        yield Divergence(kl.clamp(min=0), agree, ours.answer)


def fidelity_figures(found: Sequence[Divergence]) -> dict[str, float]:
    """kl_mean, kl_worst: over all tokens of the rows, in nats; kl_answer_mean: over the answers' tokens only.
    top1_agreement: share of all tokens where both prefer the same one."""
    kl = torch.cat([one.kl for one in found])
    answers = torch.cat([one.kl[one.answer] for one in found])
    return {
        "rows": len(found),
        "tokens": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_worst": float(kl.max()),
        "kl_answer_mean": float(answers.mean()),
        "top1_agreement": float(torch.cat([one.agree for one in found]).float().mean()),
    }


def reference_targets(loaded: Loaded, rows: Rows, *, whole: bool = False) -> Iterator[Targets]:
    """The model's next-token distributions from each row's reference answer on, or over the whole row, a few rows at a
    time."""
    for batch in batches(rows, _LOGITS_BATCH):
        spans = [answer_span(loaded, row) for row in batch]
        inputs = encode(loaded.tokenizer, batch, answered=True)
        mask = inputs["attention_mask"]
        lengths = mask.sum(dim=1).tolist()
        firsts = [1 if whole else span.start for span in spans]
        with torch.inference_mode(), loaded.activate():
            logits = loaded.model(
                **{name: tensor.to(loaded.model.device) for name, tensor in inputs.items()},
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0).to(loaded.model.device),
                logits_to_keep=max(map(operator.sub, lengths, firsts)) + 1,
                use_cache=False,
            ).logits
        for row, (length, first, span) in enumerate(zip(lengths, firsts, spans, strict=True)):
            kept = length - first
            log_probs = logits[row, -kept - 1 : -1].float().log_softmax(dim=-1).cpu()
            yield Targets(log_probs, inputs["input_ids"][row, -kept:], slice(span.start - first, span.stop - first))


def answer_span(loaded: Loaded, row: Conversation) -> slice:
    """Which tokens of a row are its last message's own and the one that stops it: from the first that another message
    would change, as a template may write before it (an empty reasoning, say), to the first that ends an answer."""
    said = row[-1]["content"]
    other: Message = {"role": row[-1]["role"], "content": "b" if said.strip().startswith("a") else "a"}
    ids, others = (
        encode(loaded.tokenizer, [one], answered=True)["input_ids"][0].tolist() for one in (row, [*row[:-1], other])
    )
    start = next((at for at, pair in enumerate(zip(ids, others, strict=False)) if pair[0] != pair[1]), len(ids) - 1)
    return slice(start, next((at + 1 for at in range(start, len(ids)) if ids[at] in loaded.stops), len(ids)))


def greedy_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, activate: Activate = nullcontext
) -> list[str]:
    """A model's own answers to the prompts of a batch of rows."""
    settings = GenerationSettings(max_new_tokens=ANSWER_TOKENS)
    return complete(model, tokenizer, [row[:-1] for row in rows], settings, activate)


def that_fit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Rows, answer_tokens: int = 0
) -> list[Conversation]:
    """The rows that ask something and are within the model's context, as is an answer of so many tokens to them."""
    longest = context_length(model)

    def tokens(row: Conversation, answered: bool) -> int:
        return encode(tokenizer, [row], answered)["input_ids"].shape[1]

    def fits(row: Conversation) -> bool:
        return max(tokens(row, True), tokens(row[:-1], False) + answer_tokens) <= longest

    return [row for row in rows if len(row) > 1 and fits(row)]


def batches(rows: Rows, size: int) -> Iterator[Rows]:
    """The rows, at most ``size`` at a time."""
    return (rows[start : start + size] for start in range(0, len(rows), size))
