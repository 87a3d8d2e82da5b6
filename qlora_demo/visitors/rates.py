"""So many in a minute: a sliding window for each key, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from ..errors import TooMany

MINUTE = 60.0
_MOST_KEYS = 4096


class Rate:
    """At most ``most`` in any minute for each key; of the keys, those that asked last are remembered."""

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._now = now
        self._lock = threading.Lock()
        self._spent: OrderedDict[str, deque[float]] = OrderedDict()

    def spend(self, key: str, what: str) -> None:
        """Count one more; raises `TooMany`, and counts nothing, where the minute is full."""
        with self._lock:
            now, times = self._now(), self._spent.pop(key, deque[float]())
            while times and times[0] <= now - MINUTE:
                times.popleft()
            self._spent[key] = times
            if len(self._spent) > _MOST_KEYS:
                self._spent.popitem(last=False)
            if len(times) >= self.most:
                wait = math.ceil(times[0] + MINUTE - now)
                raise TooMany(f"{what}: {self.most} in a minute is the most; try again in {wait} s")
            times.append(now)

    def count(self, key: str) -> int:
        """How many in the last minute."""
        with self._lock:
            return sum(at > self._now() - MINUTE for at in self._spent.get(key, ()))
