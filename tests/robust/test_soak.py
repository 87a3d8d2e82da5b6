"""Fifty visitors at once on a real app: nobody sees another's words, nobody is passed over, memory stays flat.

make soak      five minutes; QLORA_DEMO_SOAK_SECONDS says how long it is otherwise
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from qlora_demo.catalog import SMOLLM2
from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.config import GenerationSettings
from qlora_demo.records import AnswerRequest
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from tests.browser.conftest import Server
from tests.ml.test_variants import finished_run
from tests.robust.visitor import TOKENS, Asked, Page, Visitor

pytestmark = [pytest.mark.processes, pytest.mark.soak, pytest.mark.timeout(900)]

_SECONDS = float(os.environ.get("QLORA_DEMO_SOAK_SECONDS", "10"))
_VISITORS = 50
_COLUMNS = ["base", "adapter"]
_GROWTH_MIB = 64
"""What the app may take more at the end than before the middle, when as many pages are kept as are kept at all."""
_PASSED_OVER = 3
"""Answers to those who came later that may begin before one's own: one that is told first may be read second."""
_CHECKED = 40
"""Answers that are computed again."""


@pytest.fixture
def run(services: Services, tiny_model: Path) -> Run:
    (services.settings.models).mkdir()
    (services.settings.models / SMOLLM2.name).symlink_to(tiny_model)  # nothing is to be fetched meanwhile
    return finished_run(services, tiny_model, "qlora")


@pytest.fixture
def app(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """`python app.py` for fifty strangers behind a proxy: every limit on one of them is as it comes."""
    monkeypatch.setenv("QLORA_DEMO_PASSWORD", "correct horse battery")
    # Who leaves in mid-answer keeps a place until the next step forward is told: seconds, when fifty wait.
    monkeypatch.setenv("QLORA_DEMO_QUEUE_LENGTH", str(_VISITORS * 2))
    # Every reload is a page more; so many are there in a quarter of the time, and from then on memory is to be flat.
    monkeypatch.setenv("QLORA_DEMO_OPEN_PAGES", str(_VISITORS * 3))
    monkeypatch.setenv("QLORA_DEMO_ALL_REQUESTS", str(_VISITORS * 20))
    server = Server(tmp_path / "app.log")
    yield SimpleNamespace(url=server.url, process=psutil.Process(server.process.pid), log=server.log)
    server.kill()


class Crowd:
    """What all visitors did, and what the app's memory was meanwhile."""

    def __init__(self, app: SimpleNamespace, run: Run, seconds: float) -> None:
        self.page, self.run, self.app = Page(app.url), run.id, app
        self.end = time.monotonic() + seconds
        self.asked: list[list[Asked]] = [[] for _ in range(_VISITORS)]
        self.votes, self.left, self.reloads = 0, 0, 0
        self.wrong: list[str] = []
        self.rss: list[tuple[float, float]] = []

    def go(self) -> None:
        """All at once, until the time is over."""
        watching = threading.Thread(target=self._watch)
        watching.start()
        with ThreadPoolExecutor(_VISITORS) as threads:
            list(threads.map(self._visit, range(_VISITORS)))
        watching.join()

    def _watch(self) -> None:
        while time.monotonic() < self.end:
            self.rss.append((time.monotonic(), self.app.process.memory_info().rss / (1 << 20)))
            time.sleep(0.5)

    def _visit(self, number: int) -> None:
        dice = random.Random(number)
        visitor, said, turn = Visitor(self.page, self.run, _COLUMNS, number), list[str](), 0
        while time.monotonic() < self.end:
            turn += 1
            prompt, chance = f"visitor {number} says {turn}", dice.random()
            if chance < 0.15 or len(said) > 2:
                visitor.open()
                said, self.reloads = [], self.reloads + 1
            elif chance < 0.25:
                visitor.ask(prompt, leave_after=dice.randrange(1, 6))
                visitor.open()
                said, self.left = [], self.left + 1
            else:
                said = self._ask(visitor, number, said, prompt, blind=chance > 0.85)

    def _ask(self, visitor: Visitor, number: int, said: list[str], prompt: str, *, blind: bool) -> list[str]:
        asked = visitor.ask(prompt, blind=blind)
        self.asked[number].append(asked)
        if asked.failed or asked.told or not asked.conversations:
            self.wrong.append(f"{prompt}: {asked.failed} {asked.told}")
            return said
        said = [prompt] if blind else [*said, prompt]  # a blind prompt begins anew
        for conversation in asked.conversations:
            if [text for role, text in conversation if role == "user"] != said:
                self.wrong.append(f"{prompt}: the conversation is {conversation}, asked was {said}")
        if blind:
            self.wrong += visitor.vote(random.choice(["0", "1", "tie", "bad"]))
            self.votes += 1
        return said


def passed_over(asked: list[Asked]) -> tuple[int, str]:
    """The most answers that began before somebody's whose prompt was taken in before theirs was sent, and whose."""
    served = [one for one in asked if one.served]
    counts = [sum(one.taken < other.sent and other.served < one.served for other in served) for one in served]
    most = max(counts, default=0)
    one = served[counts.index(most)]
    steps = {"taken in": one.taken, "begun": one.begun, "answered": one.served}
    return most, f"{one.prompt}, " + ", ".join(f"{name} after {at - one.sent:.2f} s" for name, at in steps.items())


def elsewhere(services: Services, home: Path) -> Services:
    """The same run on another home."""
    shutil.copytree(services.settings.runs, home / "runs")
    return build_services(Settings(home))


def again(services: Services, run: Run, asked: Asked) -> list[str]:
    """What every column answers to the conversation that one column has had, greedily and alone."""
    columns = parse_all(_COLUMNS, run.id)
    turns = {
        column.name: tuple({"role": role, "content": text} for role, text in asked.conversations[at][:-1])
        for at, column in enumerate(columns)
    }
    *_, answers = services.engine().answer(
        AnswerRequest(columns, turns, GenerationSettings(max_new_tokens=TOKENS)), Halt()
    )
    return [answer.text for answer in answers]


def test_fifty_visitors_at_once(app: SimpleNamespace, services: Services, run: Run, tmp_path: Path) -> None:
    first = Visitor(Page(app.url), run.id, _COLUMNS).ask("is anybody there?")  # the models are loaded for this
    assert first.conversations, (first, app.log.read_text("utf-8"))
    crowd = Crowd(app, run, _SECONDS)
    began = time.monotonic()
    crowd.go()
    answered = [[one for one in asked if one.conversations] for asked in crowd.asked]
    everyone, counts = [one for asked in crowd.asked for one in asked], [len(asked) for asked in answered]
    warm = statistics.median(rss for at, rss in crowd.rss if began + _SECONDS * 0.35 < at < began + _SECONDS * 0.5)
    end = statistics.median(rss for at, rss in crowd.rss if at > began + _SECONDS * 0.85)
    waits = sorted(one.served - one.sent for one in everyone if one.served)
    over, whose = passed_over(everyone)
    print(
        f"{sum(counts)} answers, {min(counts)} to {max(counts)} a visitor, {crowd.votes} votes, {crowd.left} left, "
        f"{crowd.reloads} reloads, wait median {statistics.median(waits):.1f} s most {waits[-1]:.1f} s, passed over by "
        f"{over}, RSS {warm:.0f} -> {end:.0f} MiB"
    )
    assert crowd.wrong == []
    assert "Traceback" not in app.log.read_text("utf-8")
    assert over <= _PASSED_OVER, whose
    assert end - warm < _GROWTH_MIB
    assert _SECONDS < 300 or max(counts) <= 3 * min(counts)
    plain = [one for asked in answered for one in asked if not one.blind]  # blind columns stand in any order
    apart = elsewhere(services, tmp_path / "elsewhere")  # the app holds this home's device
    for one in random.Random(0).sample(plain, min(_CHECKED, len(plain))):
        found = [conversation[-1][1] for conversation in one.conversations]
        assert found == again(apart, run, one), one
    late = Visitor(crowd.page, run.id, _COLUMNS).ask("is anybody still there?")
    assert late.conversations and not late.told
