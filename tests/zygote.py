"""A process that has imported everything and forks trainers and apps: starting one takes longer than their tiny runs.

    python -m tests.zygote SOCKET

Each message is a line of a word, a path and an environment, with the locks that a trainer inherits as file descriptors;
the answer is a pid.  A child ends without Python's own ending: where that is tested, real ones are started.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from qlora_demo.compose import build_services
from qlora_demo.errors import DemoError
from qlora_demo.ml import train
from qlora_demo.records import Answer, Progress, Step
from qlora_demo.results.history import write_note
from qlora_demo.results.reporting import keep_conversation
from qlora_demo.results.votes import NewComparison
from qlora_demo.runs import HELD, Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from qlora_demo.upkeep.dispatch import Dispatcher

_BYTES = 1 << 16


def ask(address: str, what: str, path: Path, fds: tuple[int, ...] = ()) -> int:
    """Have the zygote fork a child for a path, in this process' environment; its pid."""
    message = json.dumps([what, str(path), dict(os.environ)]).encode() + b"\n"
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(address)
        socket.send_fds(link, [message], list(fds))
        return int(link.recv(64))


def spawn_through(address: str, services: Services) -> list[int]:
    """Have an app's trainers forked instead of started, everything else being as it is; their pids, as they come."""
    pids: list[int] = []

    def spawn(run: Run, _: int, inherited: tuple[int, ...]) -> None:
        pids.append(ask(address, "train", run.path, inherited))

    vars(services.launcher)["_spawn"] = spawn
    return pids


def serve(address: str) -> None:
    """Fork whatever is asked for, until the socket's file is gone."""
    children: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        listener.settimeout(1)
        while Path(address).exists():
            children = [pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)]
            try:
                link, _ = listener.accept()
            except TimeoutError:
                continue
            with link:
                children += _answer(link, address)


def _answer(link: socket.socket, address: str) -> list[int]:
    """The pid of what was forked; none where who asks was killed before it had asked."""
    message, fds, *_ = socket.recv_fds(link, _BYTES, 8)
    try:
        while not message.endswith(b"\n"):
            more = link.recv(_BYTES)
            if not more:
                return []
            message += more
        what, path, environ = json.loads(message)
        pid = os.fork()
        if pid == 0:
            os.environ.clear()
            os.environ.update(environ)
            _become(what, Path(path), address)
    finally:
        for fd in fds:
            os.close(fd)
    with contextlib.suppress(BrokenPipeError):  # who asked was killed meanwhile
        link.send(str(pid).encode())
    return [pid]


def _become(what: str, path: Path, address: str) -> None:
    status = 1
    try:
        log = os.open(
            path / "train.log" if what == "train" else path / "app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.setsid()
        if what == "train":
            sys.argv = ["train", str(path), HELD]
            train.main()
        else:
            app(path, address)
        status = 0
    except SystemExit as ending:
        status = int(ending.code or 0)
    except BaseException:  # noqa: BLE001 - the child's last words; nothing of its parent's may run in it
        traceback.print_exc()
    finally:
        os._exit(status)


def app(home: Path, address: str) -> None:
    """The app without its page: queue, dispatcher, jobs, votes, notes and kept conversations, as fast as they go."""
    services = build_services(Settings(home))
    spawn_through(address, services)
    dispatcher = Dispatcher(services)
    acts: tuple[Any, ...] = (dispatcher.look, lambda: _vote(services), lambda: _write(services))
    for act in acts[:-1]:
        threading.Thread(target=_for_ever, args=(act,), daemon=True).start()
    _for_ever(acts[-1])


def _for_ever(act: Any) -> None:
    while True:
        try:
            act()
        except DemoError as exc:
            print(exc, flush=True)
        time.sleep(0.005)


def _vote(services: Services) -> None:
    answers = {"base": {"text": "b" * 1000}, "adapter": {"text": "a" * 1000}}
    name = services.votes.add(NewComparison("run", "", "prompt", {}, ("base", "adapter"), answers))
    services.votes.vote(name, random.choice(["base", "adapter", "tie"]))


def _write(services: Services) -> None:
    for run in services.runs.all():
        write_note(run, "note " * random.randrange(300), "a, b")
        keep_conversation(run, "", "prompt", [Answer("base", text="x" * 1000)], {})
        if not services.jobs.going:
            services.jobs.start("evaluation", run.id, _work)


def _work(halt: Halt) -> Any:
    for number in itertools.takewhile(lambda number: number < 5 and not halt.is_set(), itertools.count()):
        yield Step(Progress(f"step {number}", number / 5), {"splits": {}, "text": "x" * 20_000})


if __name__ == "__main__":
    serve(sys.argv[1])
