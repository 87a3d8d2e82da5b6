"""Support tickets -> one line of JSON: the bundled task, and its generator.

Rows are drawn by a seeded generator, so every machine sees the same ones.  Three splits:

* ``train``  products and wordings of the training pool
* ``test``   rows drawn from the same pool that training never sees
* ``hard``   products, wordings, openings and asides that do not occur in the training pool at all
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import islice
from typing import Any, Literal

SYSTEM_PROMPT = "Answer with one line of JSON: category, product, severity."
Split = Literal["train", "test", "hard"]
Row = dict[str, list[dict[str, str]]]

HELD_OUT_ROWS = 200
"""Rows of the training pool that belong to ``test``; ``train`` begins after them, and no ticket occurs twice."""


def rows(split: Split, count: int) -> list[Row]:
    """The first ``count`` rows of a split as ``{"messages": [system, user, assistant]}``; always the same ones."""
    if split == "test" and count > HELD_OUT_ROWS:
        raise ValueError(f"count: the test split has {HELD_OUT_ROWS} rows, asked for {count}")
    skip = HELD_OUT_ROWS if split == "train" else 0
    drawn = _unique_rows(_pools()["hard" if split == "hard" else "train"])
    return list(islice(drawn, skip, skip + count))


@cache
def _pools() -> dict[str, Any]:
    pools: dict[str, Any] = json.loads(files(__package__).joinpath("tickets.json").read_text("utf-8"))
    return pools


def _draw(pool: dict[str, Any], rng: random.Random) -> tuple[str, dict[str, str]]:
    category = rng.choice(sorted(pool["symptom"]))
    severity = rng.choice(sorted(pool["impact"]))
    product = f"{rng.choice(pool['first'])} {rng.choice(pool['second'])}"
    symptom = rng.choice(pool["symptom"][category]).format(product=product)
    body = [symptom, rng.choice(pool["impact"][severity])]
    if rng.random() < 0.3:
        body.reverse()
    if rng.random() < 0.35:
        aside = rng.choice(pool["aside"]).format(number=rng.randrange(10_000, 100_000))
        body.insert(rng.randrange(3), aside)
    if rng.random() < 0.4:
        body.insert(0, rng.choice(pool["opening"]))
    if rng.random() < 0.4:
        body.append(rng.choice(pool["closing"]))
    return " ".join(body), {"category": category, "product": product, "severity": severity}


def _unique_rows(pool: dict[str, Any]) -> Iterator[Row]:
    rng, seen = random.Random(0), set[str]()
    while True:
        ticket, fields = _draw(pool, rng)
        if ticket in seen:
            continue
        seen.add(ticket)
        yield {
            "messages": [
                {"role": "system", "content": SYSTEM_PROMPT},
                {"role": "user", "content": ticket},
                {"role": "assistant", "content": json.dumps(fields)},
            ]
        }
