"""An answer as it is kept, in votes, prompt sets, reports and on the command line; what was asked and its times, in
words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..records import Answer, Message
from ..units import counted, duration


def kept(answer: Answer) -> dict[str, Any]:
    """Text, figures and proof; times in seconds, memory in bytes, None where too few tokens came to have one."""
    timing = answer.timing
    return {
        "text": answer.text,
        "prompt_tokens": timing.prompt_tokens,
        "new_tokens": timing.new_tokens,
        "ttft_seconds": timing.ttft_seconds if timing.new_tokens else None,
        "total_seconds": timing.total_seconds,
        "tokens_per_second": timing.tokens_per_second,
        "tpot_median_seconds": timing.tpot_median_seconds,
        "tpot_p95_seconds": timing.tpot_p95_seconds,
        "bandwidth_share": answer.bandwidth_share,
        "model_bytes": answer.model_bytes,
        "decode": answer.decode,
        "finish": answer.finish,
        "error": answer.error,
        "proof": asdict(answer.proof) if answer.proof else None,
    }


def asked(turns: Sequence[Message]) -> str:
    """What was asked: the prompt, or all of a conversation that ends with it; without the system prompt."""
    said = [turn for turn in turns if turn["role"] != "system"]
    return said[0]["content"] if len(said) == 1 else transcript(said)


def transcript(turns: Sequence[Message]) -> str:
    """A conversation as one text."""
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def speeds(answer: Mapping[str, Any]) -> str:
    """A kept answer's length and what is known of its times."""
    ttft, rate = answer["ttft_seconds"], answer["tokens_per_second"]
    known = [f"{duration(ttft)} to the first"] if ttft else []
    known += [f"{rate:.1f} tokens/s"] if rate else []
    return ", ".join([counted(answer["new_tokens"], "token"), *known])
