"""The queue for answers: one at a time, operators first, visitors in order, a limit in all and for each address."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager

import pytest

from qlora_demo.errors import TooMany
from qlora_demo.system.halt import Halt
from qlora_demo.visitors.access import Visitor
from qlora_demo.visitors.waiting import Waiting

OPERATOR = Visitor("operator", "9.9.9.9")


def visitor(address: str) -> Visitor:
    return Visitor(address=address)


class Asker:
    """Somebody in the queue; `place` is what they are told next, 0 for their turn."""

    def __init__(self, waiting: Waiting, who: Visitor) -> None:
        self.halt = Halt()
        self.turn: AbstractContextManager[Iterator[int]] = waiting.turn(who, self.halt)
        self.places = self.turn.__enter__()

    @property
    def place(self) -> int:
        return next(self.places, 0)

    def leave(self) -> None:
        self.turn.__exit__(None, None, None)


def test_visitors_are_answered_in_order_and_see_their_place() -> None:
    waiting = Waiting(10)
    first, second, third = (Asker(waiting, visitor(f"1.1.1.{n}")) for n in range(3))
    assert (first.place, second.place, third.place, waiting.waiting) == (0, 1, 2, 2)
    first.leave()
    assert second.place == 0
    assert third.place == 1
    second.leave()
    assert third.place == 0


def test_the_same_place_is_told_again_for_only_so_is_seen_who_went_away() -> None:
    waiting = Waiting(10)
    first, second = (Asker(waiting, visitor(f"1.1.1.{n}")) for n in range(2))
    assert first.place == 0
    stopped = threading.Timer(30, second.halt.set)
    stopped.start()
    assert [second.place, second.place] == [1, 1]
    stopped.cancel()


def test_an_operator_goes_first_but_interrupts_nobody() -> None:
    waiting = Waiting(10)
    first, second = (Asker(waiting, visitor(f"1.1.1.{n}")) for n in range(2))
    assert first.place == 0
    operator = Asker(waiting, OPERATOR)
    assert (operator.place, second.place) == (1, 2)
    first.leave()
    assert operator.place == 0


def test_who_is_stopped_or_leaves_gives_the_place_up() -> None:
    waiting = Waiting(10)
    first, second, third = (Asker(waiting, visitor(f"1.1.1.{n}")) for n in range(3))
    assert first.place == 0
    assert third.place == 2
    second.halt.set()
    assert second.place == 0
    second.leave()
    assert third.place == 1
    first.leave()
    assert third.place == 0


def test_a_full_queue_refuses_visitors_and_not_operators() -> None:
    waiting = Waiting(4)
    askers = [Asker(waiting, visitor(f"1.1.1.{n}")) for n in range(4)]
    with pytest.raises(TooMany, match=r"queue: 4 waiting for an answer, 0 of them from your address; 4 \(QLORA"):
        Asker(waiting, visitor("2.2.2.2"))
    Asker(waiting, OPERATOR)
    askers[0].leave()
    Asker(waiting, visitor("2.2.2.2"))


def test_one_address_holds_at_most_half_of_the_places() -> None:
    waiting = Waiting(4)
    held = [Asker(waiting, visitor("1.1.1.1")) for _ in range(2)]
    with pytest.raises(TooMany, match="2 of them from your address"):
        Asker(waiting, visitor("1.1.1.1"))
    held.append(Asker(waiting, visitor("2.2.2.2")))


def test_two_are_never_answered_at_once() -> None:
    waiting, at_work, most = Waiting(100), [], []

    def ask(n: int) -> None:
        with waiting.turn(visitor(f"1.1.1.{n}"), Halt()) as places:
            list(places)
            at_work.append(n)
            most.append(len(at_work))
            at_work.remove(n)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
