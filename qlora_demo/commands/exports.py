"""The commands that save a run's models elsewhere: `merge`, `export`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, get_args

from ..errors import ConfigError
from ..hub import is_repo_id, require_token
from ..jobs import at_work
from ..records import ExportKind, ExportRequest, MergeBase
from ..results.exporting import base_for, export_folder, push
from ..runs import Run
from ..services import Services
from ..system.halt import Halt
from .arguments import Parser, add_command, out_path
from .console import last, print_result


def add(commands: Any) -> None:
    """Their parsers."""
    _add_target(add_command(commands, "merge", merge, print_result))
    exporting = _add_target(add_command(commands, "export", export, print_result))
    exporting.add_argument("--what", choices=get_args(ExportKind), default="merged", help="default: merged")
    exporting.add_argument("--push", metavar="REPO", help="hub repository to push to; the token is read from HF_TOKEN")


def _add_target(parser: Parser) -> Parser:
    parser.add_argument("run")
    told = "base to merge onto; default: the one that suits what is made"
    parser.add_argument("--onto", choices=get_args(MergeBase), help=told)
    parser.add_argument("--out", help="folder to create; default: inside the run's folder")
    return parser


def merge(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Save the merged 16-bit model."""
    with at_work(services.runs.get(args.run)):
        request = ExportRequest(args.run, "merged", args.onto, out_path(args.out))
        return last(services.engine().export(request, Halt()))


def export(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Save an adapter or a merged model with its model card, and push it to a hub repository where one is named."""
    token = _token_for(args.push) if args.push else ""
    with at_work(run := services.runs.get(args.run)):
        result = _exported_before(services, run, args) if args.push and not args.out else None
        if result is None:
            request = ExportRequest(args.run, args.what, args.onto, out_path(args.out))
            result = last(services.engine().export(request, Halt()))
        if args.push:
            result |= last(push(services.hub, Path(result["path"]), args.push, token))
    return result


def _token_for(repo: str) -> str:
    """The token to push with; what would keep the hub from being asked is refused before the work."""
    if not is_repo_id(repo):
        raise ConfigError("push", f"{repo!r} is not a repository name; write owner/name, as in you/your-model")
    if not (token := os.environ.get("HF_TOKEN", "")):
        raise ConfigError("HF_TOKEN", "is not set; set it to an access token that may write")
    require_token("HF_TOKEN", token)
    return token


def _exported_before(services: Services, run: Run, args: argparse.Namespace) -> dict[str, Any] | None:
    """What stands in the run's folder already, as after a push that failed; None where there is none."""
    folder = export_folder(run, args.what, base_for(run, args.what, args.onto))
    if not folder.is_dir():
        return None
    print(f"{folder} exists already and is pushed as it is", file=sys.stderr)
    return {"path": str(folder), "what": args.what}
