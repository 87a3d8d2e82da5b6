"""`/healthz`: what the app is doing, for whoever restarts it where it is not well."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ..services import Services
from ..upkeep.health import Kept, facts

KEPT_SECONDS = 1.0
"""Anybody may ask, as often as they like, and each look writes to the disk and reads every run."""


def healthz(services: Services) -> Route:
    """GET and HEAD of `/healthz`: 200, or 503 where the app cannot write its home; see `health.facts`."""
    look = Kept(lambda: facts(services), KEPT_SECONDS)

    def answer(request: Request) -> JSONResponse:
        found = look()
        status = 200 if found["home_writable"] else 503
        return JSONResponse(found, status, headers={"Cache-Control": "no-store"})

    return Route("/healthz", answer, methods=["GET"])
