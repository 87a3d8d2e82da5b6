"""A stand-in for the hub's sign-in, over HTTP.  The code that somebody brings back is `code(person, nonce)`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

from joserfc import jwt
from joserfc.jwk import ECKey

KEY = ECKey.generate_key("P-256", {"kid": "one", "use": "sig", "alg": "ES256"})
TOKEN = "hf_oauth_eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhZGEifQ.S1gn-ature"
PEOPLE = {"ada": ("id-1", "Ada"), "bob": ("id-2", "bob"), "eve": ("id-3", "eve")}


def code(person: str, nonce: str) -> str:
    """What the hub has a person bring back who was sent there with a nonce."""
    return f"{person}.{nonce}"


@dataclass
class OpenId:
    """The hub's sign-in; ``authorize`` is where it asks a person, if elsewhere than at its own address."""

    url: str = ""
    authorize: str = ""

    def configuration(self) -> dict[str, Any]:
        return {
            "authorization_endpoint": self.authorize or f"{self.url}/oauth/authorize",
            "token_endpoint": f"{self.url}/oauth/token",
            "userinfo_endpoint": f"{self.url}/oauth/userinfo",
            "issuer": self.url,
            "jwks_uri": f"{self.url}/jwks",
            "id_token_signing_alg_values_supported": ["ES256"],
        }

    def token(self, brought: str) -> dict[str, Any]:
        """What the app is given for a code."""
        name, _, nonce = brought.partition(".")
        person, shown = PEOPLE[name]
        now = int(time.time())
        claims = {"iss": self.url, "aud": "the-app", "sub": person, "preferred_username": shown, "iat": now}
        claims |= {"exp": now + 60, "nonce": nonce}
        signed = jwt.encode({"alg": "ES256", "kid": "one"}, claims, KEY)
        return {"access_token": TOKEN, "token_type": "bearer", "expires_in": 60, "id_token": signed}


@contextmanager
def answering() -> Iterator[OpenId]:
    """One that answers on this machine."""
    made = OpenId()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = {"/.well-known/openid-configuration": made.configuration(), "/jwks": {"keys": [KEY.as_dict(False)]}}
            self._send(found[self.path])

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._send(made.token(form["code"][0]))

        def log_message(self, format: str, *args: object) -> None:
            """Keep still."""

        def _send(self, body: Any) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        made.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()
