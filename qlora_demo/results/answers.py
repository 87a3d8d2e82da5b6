"""An answer as it is kept: in votes, prompt sets, reports and on the command line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..records import Answer


def kept(answer: Answer) -> dict[str, Any]:
    """Text, figures and proof; times in seconds, memory in bytes."""
    timing = answer.timing
    return {
        "text": answer.text,
        "prompt_tokens": timing.prompt_tokens,
        "new_tokens": timing.new_tokens,
        "ttft_seconds": timing.ttft_seconds,
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
