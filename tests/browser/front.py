"""A hub's page and a Space over TLS, on one port, as the names in a browser lead there.

    python -m tests.browser.front URL PORT FOLDER

The Space's name is answered by the app at URL, which is told who asked and how, as the hub's proxy tells it; the hub's
name by a page that frames the Space, and by Ada, who signs in with the hub and says yes.  FOLDER takes a key and a
certificate.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import URL, QueryParams
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.open_id import code

HUB, SPACE = "huggingface.co", "ada-demo.hf.space"
AUTHORIZE = "/oauth/authorize"
_PAGE = f'<!doctype html><title>Hub</title><iframe src="https://{SPACE}/" width="1200" height="900"></iframe>'
_OF_ONE_CONNECTION = {b"content-length", b"transfer-encoding", b"connection", b"content-encoding"}


def main(url: str, port: str, folder: str) -> None:
    key, certificate = Path(folder) / "key.pem", Path(folder) / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={SPACE}", "-days", "1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    app = front(httpx.AsyncClient(base_url=url, timeout=None))
    uvicorn.run(app, port=int(port), log_level="error", ssl_keyfile=str(key), ssl_certfile=str(certificate))


def _said_yes(asked: QueryParams) -> Response:
    brought = {"code": code("ada", asked["nonce"]), "state": asked["state"]}
    return RedirectResponse(str(URL(asked["redirect_uri"]).include_query_params(**brought)), 302)


def front(client: httpx.AsyncClient) -> Starlette:
    async def answer(request: Request) -> Response:
        if request.headers["host"].partition(":")[0] == HUB:
            return _said_yes(request.query_params) if request.url.path == AUTHORIZE else HTMLResponse(_PAGE)
        headers = {**request.headers, "x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}
        target = httpx.URL(path=request.url.path, query=request.url.query.encode())
        asked = client.build_request(request.method, target, headers=headers, content=await request.body())
        given = await client.send(asked, stream=True)

        async def body() -> AsyncIterator[bytes]:
            async for part in given.aiter_bytes():
                yield part
            await given.aclose()

        passed = StreamingResponse(body(), given.status_code)
        passed.raw_headers = [one for one in given.headers.raw if one[0].lower() not in _OF_ONE_CONNECTION]
        return passed

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


if __name__ == "__main__":
    main(*sys.argv[1:])
