"""Command-line arguments: config fields to flags and back."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ..benchmark.config import BenchmarkConfig
from ..config import GenerationSettings, TrainConfig
from ..errors import RequestError
from ..knobs import Knobs, allowed, field_names, knob
from ..plan.memory_plan import Kind, parse_memory
from ..system.disk import writing

Bases = Mapping[Kind, TrainConfig]
Config = TypeVar("Config", TrainConfig, GenerationSettings, BenchmarkConfig)


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are a request's errors."""

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """What is not known is refused by the command that it was given to, which knows what may have been meant."""
        found, left = super().parse_known_args(*args, **kwargs)
        if left:
            near = difflib.get_close_matches(left[0].partition("=")[0], self._option_string_actions, 1)
            meant = f", did you mean {near[0]}" if near else ""
            self.error(f"unknown argument {left[0]}{meant}")
        return found, left

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{self.prog}: {message}; see `{self.prog} --help`")


def add_command(commands: Any, name: str, command: Callable[..., Any], show: Callable[[Any], None]) -> Parser:
    """The parser of one command: what it does, whose docstring is its help, and what shows its result to people."""
    parser: Parser = commands.add_parser(name, help=command.__doc__, description=command.__doc__, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    parser.set_defaults(command=command, show=show)
    return parser


def add_config(parser: Parser, bases: Bases | None = None) -> Parser:
    """A flag for every training field, and a file of them; ``bases``: what is taken by kind of device where nothing is
    given."""
    parser.add_argument("--config", help="JSON file of config fields; the flags below override it")
    return add_knobs(parser, TrainConfig, bases=bases)


def add_knobs(
    parser: Parser,
    config: type[Knobs],
    leave_out: tuple[str, ...] = (),
    bases: Bases | None = None,
) -> Parser:
    """A flag for every field of a config."""
    for name in field_names(config):
        if name not in leave_out:
            told = f"{allowed(config, name)}; default {_default(knob(config, name).default, name, bases)}"
            meaning = f"{knob(config, name).description} ({told})"
            flags = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
            parser.add_argument(*flags, dest=name, metavar="VALUE", help=meaning.replace("%", "%%"))
    return parser


def _default(declared: Any, name: str, bases: Bases | None) -> str:
    found = {kind: str(getattr(base, name)) for kind, base in bases.items()} if bases else {}
    if len(set(found.values())) > 1:
        return ", ".join(f"{value} on {kind}" for kind, value in found.items())
    return next(iter(found.values()), str(declared))


def with_given(base: Config, args: argparse.Namespace) -> Config:
    """A config with the fields that flags gave."""
    given = {name: getattr(args, name, None) for name in field_names(type(base))}
    return base.changed(**{name: value for name, value in given.items() if value is not None})


def train_config(args: argparse.Namespace, base: TrainConfig | None = None) -> TrainConfig:
    """The training settings that file and flags ask for."""
    return with_given(TrainConfig.from_file(Path(args.config)) if args.config else base or TrainConfig(), args)


def positive(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a whole number >= 1")
    return int(text)


def memory_size(text: str) -> int:
    """A size like 24GB in bytes, for argparse."""
    try:
        return parse_memory(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; give a size like 24GB") from exc


def out_path(path: str | None) -> Path | None:
    """The folder or file to make; the folders that it stands in are made here, before the work."""
    if not path:
        return None
    out = Path(path).expanduser()
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def names(text: str) -> list[str]:
    """A list separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]
