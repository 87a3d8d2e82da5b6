"""A Dockerfile as data: its stages, and the instructions of each."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction; ``flags`` are its ``--name=value`` options, ``value`` is the rest as it stands."""

    name: str
    value: str
    flags: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The parts of a COPY, or of a command in its JSON form."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)

    @property
    def stage(self) -> str:
        """The stage that a COPY takes from; empty for the build context."""
        return next((flag.removeprefix("--from=") for flag in self.flags if flag.startswith("--from=")), "")


Stage = list[Instruction]


def read_stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile in their order; each begins with its FROM."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        instruction = _instruction(line)
        if instruction.name == "FROM":
            stages.append([])
        stages[-1].append(instruction)
    return stages


def environment(stage: Stage) -> dict[str, str]:
    """What the ENV instructions of a stage set, each reading those before it."""
    found: dict[str, str] = {}
    for instruction in stage:
        for word in shlex.split(instruction.value) if instruction.name == "ENV" else []:
            name, _, value = word.partition("=")
            found[name] = value
    return found


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().partition(" ")
    flags = []
    while match := re.match(r"(--\S+)\s+", rest := rest.strip()):
        flags.append(match[1])
        rest = rest[match.end() :]
    if name == "HEALTHCHECK":
        rest = rest.removeprefix("CMD ")
    return Instruction(name, rest, tuple(flags))
