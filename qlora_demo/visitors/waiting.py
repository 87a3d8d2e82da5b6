"""Who waits for an answer: one is answered at a time, operators first, then visitors in the order they came."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import TooMany
from ..settings import variable
from ..system.halt import Halt
from .access import Visitor

_LOOK_SECONDS = 0.5
_TOLD_A_SECOND = 10
"""Of all who wait together: when fifty wait, telling each of every step forward takes longer than the answers."""
_TOLD_AGAIN_SECONDS = 2.0
"""Also the same place: only who is told something is found to have gone away."""
_numbers = itertools.count()


@dataclass(frozen=True, order=True)
class Ticket:
    """A place in the queue; the least is next."""

    rank: int
    number: int
    address: str


class Waiting:
    """The queue in front of the models' one thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._changed = threading.Condition()
        self._served: Ticket | None = None
        self._tickets: list[Ticket] = []

    @property
    def waiting(self) -> int:
        """How many have not begun yet."""
        return len(self._tickets)

    @property
    def answering(self) -> bool:
        """Whether somebody is answered now."""
        return self._served is not None

    @contextmanager
    def turn(self, visitor: Visitor, halt: Halt) -> Iterator[Iterator[int]]:
        """A place in the queue, left at the end; inside, the places that one moves up through, each again and again,
        until it is one's turn or `halt` is set.  Raises `TooMany` where the queue is full for this visitor."""
        ticket = self._join(visitor)
        try:
            yield self._places(ticket, halt)
        finally:
            self._leave(ticket)

    def _join(self, visitor: Visitor) -> Ticket:
        ticket = Ticket(visitor.role == "visitor", next(_numbers), visitor.address)
        with self._changed:
            visitors = [one for one in self._tickets if one.rank]
            same = sum(one.address == ticket.address for one in visitors)
            if ticket.rank and (len(visitors) >= self.most or same >= max(1, self.most // 2)):
                raise TooMany(
                    f"queue: {len(visitors)} waiting for an answer, {same} of them from your address; "
                    f"{self.most} ({variable('queue_length')}), half of them from one address, is the most; "
                    "try again in a minute"
                )
            self._tickets.append(ticket)
            return ticket

    def _places(self, ticket: Ticket, halt: Halt) -> Iterator[int]:
        shown, told_at = 0, -math.inf
        while not halt.is_set():
            with self._changed:
                pause = len(self._tickets) / _TOLD_A_SECOND
                place = 1 + sum(other < ticket for other in self._tickets)
                if self._served is None and place == 1:
                    self._tickets.remove(ticket)
                    self._served = ticket
                    return
            since = time.monotonic() - told_at
            if since >= (pause if place != shown else max(pause, _TOLD_AGAIN_SECONDS)):
                yield place
                shown, told_at = place, time.monotonic()
            with self._changed:
                self._changed.wait(_LOOK_SECONDS)

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            if self._served == ticket:
                self._served = None
            elif ticket in self._tickets:
                self._tickets.remove(ticket)
            self._changed.notify_all()
