"""What is wrong with the rows of a data set: how many have each kind of problem, and which are the first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_SHOWN = 5
_KINDS = {
    "unusable": "cannot be used",
    "cut": "is longer than max_length and loses its end",
    "dropped": "keeps no trained token within max_length and is dropped",
    "duplicate": "appears more than once",
    "leak": "is a copy of a held-out row and is not trained on",
    "encoding": "holds characters that were lost to a wrong encoding",
    "order": "has turns out of order",
    "unasked": "begins with an answer that no turn asks for, which is not trained on",
    "untrained": "every row to train on is dropped, so raise max_length or give other rows",
    "unmeasured": "every held-out row is dropped, so raise max_length or give other rows",
    "stop": "ends without a trained stop token, so answers may not end",
}
"""What a row of each kind is or does, to be followed by how many do."""


@dataclass
class Problem:
    """A kind of problem and the first rows that have it, by what is wrong with each where that is told; `fatal` ones
    stop a start."""

    kind: str
    fatal: bool
    count: int = 0
    _places: dict[str, list[str]] = field(default_factory=dict)
    _alike: Counter[str] = field(default_factory=Counter)

    @property
    def what(self) -> str:
        """What a row of this kind is or does."""
        return _KINDS[self.kind]

    def add(self, place: str, fault: str = "") -> None:
        """Count a row, whose place and fault make a sentence together."""
        self.count += 1
        if fault in self._places or len(self._places) < _SHOWN:
            self._alike[fault] += 1
            if len(places := self._places.setdefault(fault, [])) < _SHOWN:
                places.append(place)

    def first(self) -> str:
        """The first row, and what is wrong with it."""
        fault, places = next(iter(self._places.items()))
        return places[0] + fault

    def told(self) -> dict[str, Any]:
        """``kind``, ``fatal``, ``count``, ``rows``, ``what``; a fault that several rows have is told once."""
        rows = [row for fault in self._places for row in self._rows(fault)]
        return {"kind": self.kind, "fatal": self.fatal, "count": self.count, "rows": rows, "what": self.what}

    def _rows(self, fault: str) -> list[str]:
        places = self._places[fault]
        if not fault or len(places) == 1:
            return [place + fault for place in places]
        left = self._alike[fault] - len(places)
        return [f"{places[0]}{fault} (also {', '.join(places[1:])}{f' and {left:,} more' if left else ''})"]
