"""The app's services on the command line, without a browser.

    python -m qlora_demo COMMAND [--json]

With --json, stdout is exactly one JSON document; everything else goes to stderr.
Exit 0 done; 2 the request is wrong; 1 it failed: then one line on stderr says why.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__
from .commands import benchmark, exports, judging, machine, training
from .commands.arguments import Parser
from .commands.console import tell
from .compose import build_services
from .errors import DemoError
from .settings import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    try:
        args = _parser().parse_args(argv)
        with contextlib.redirect_stdout(sys.stderr):
            result = _run(args)
        tell(result, None if args.json else args.show)
    except DemoError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 1
    return 1 if args.command is machine.doctor and not result["ok"] else 0


def _run(args: argparse.Namespace) -> Any:
    if args.command is machine.doctor:
        return machine.doctor()
    with contextlib.closing(build_services(Settings.from_environment())) as services:
        return args.command(services, args)


def _parser() -> Parser:
    parser = Parser(prog="python -m qlora_demo", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for module in (machine, training, judging, exports, benchmark):
        module.add(commands)
    return parser
