"""A model hub on this machine: what a push asks of the real one, over real HTTP, with the files kept on disk.

Covers reading a repository's files, pausing a Space, creating a repository, checking a model card, choosing how each
file travels, commits, and both ways that large files travel: git LFS, and Xet (chunks in xorbs, then a shard that says
which chunks make a file) as far as chunks that do not compress go, so that no decompressor is needed: give it random
bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

Answer = tuple[int, Any]
OWNER, OWNERS_TOKEN, STORAGE_TOKEN = "ada", "hf_S3cretOfAda", "storage-token"


@dataclass
class HubServer:
    """Serves repositories of one owner, whose ``token`` is the only one that counts, from folders under ``root``.

    ``lfs`` names the suffixes that travel as git LFS.  ``trouble`` maps a part of a path to what a request for it is
    answered with: an HTTP status, or None to close the connection without a word.
    """

    root: Path
    token: str
    lfs: tuple[str, ...] = ()
    trouble: dict[str, int | None] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)
    xorbs: dict[str, list[bytes]] = field(default_factory=dict)
    paused: list[str] = field(default_factory=list)

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files(self, repo: str) -> dict[str, bytes]:
        """What a repository holds, by path."""
        folder = self.root / repo
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def create(self, body: dict[str, Any]) -> Answer:
        """A new repository; one that exists is left as it is and said to exist."""
        repo = f"{body.get('organization') or OWNER}/{body['name']}"
        if repo in self.private:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}
        self.private[repo] = body.get("visibility") == "private"
        (self.root / repo).mkdir(parents=True)
        return 200, {"url": f"{self.url}/{repo}"}

    def info(self, repo: str) -> Answer:
        """A repository's visibility and the name of its last commit."""
        if repo not in self.private:
            return 404, {"error": "Repository not found"}
        siblings = [{"rfilename": name, "size": len(data)} for name, data in sorted(self.files(repo).items())]
        return 200, {"id": repo, "private": self.private[repo], "sha": self._head(repo), "siblings": siblings}

    def tree(self, repo: str, *, whole: bool) -> Answer:
        """A repository's files with the hash of each: those at its top, or the ``whole``."""
        found = {name: data for name, data in self.files(repo).items() if whole or "/" not in name}
        return 200, [self._entry(name, data) for name, data in found.items()]

    def pause(self, space: str) -> Answer:
        """Stop a Space."""
        self.paused.append(space)
        return 200, {"stage": "PAUSED", "hardware": {"current": None, "requested": "t4-small"}}

    def preupload(self, repo: str, body: dict[str, Any]) -> Answer:
        """How each file is to travel, and the hash of what is there under its name."""
        return 200, {"files": [self._mode(repo, file["path"]) for file in body["files"]]}

    def batch(self, body: dict[str, Any]) -> Answer:
        """Where to put each LFS object."""
        objects = [
            {"oid": one["oid"], "size": one["size"], "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
            for one in body["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def put(self, oid: str, data: bytes) -> Answer:
        """One LFS object; it must be what its name says."""
        if hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "the object has another hash"}
        self._store(data)
        return 200, {}

    def storage(self) -> Answer:
        """Leave to write to the storage of large files, which has a token of its own."""
        return 200, {"accessToken": STORAGE_TOKEN, "exp": int(time.time()) + 3600, "casUrl": self.url}

    def xorb(self, name: str, data: bytes) -> Answer:
        """A run of chunks."""
        self.xorbs[name] = list(_chunks(data))
        return 200, {"was_inserted": True}

    def shard(self, data: bytes) -> Answer:
        """Files put together from the xorbs that have come."""
        for parts in _shard_files(data):
            self._store(b"".join(chunk for xorb, first, last in parts for chunk in self.xorbs[xorb][first:last]))
        return 200, {"result": 1}

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> Answer:
        """Write the files of one commit, and take away those that it takes away."""
        for line in lines:
            value, path = line["value"], self.root / repo / str(line["value"].get("path"))
            if line["key"] == "deletedFile":
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                path.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                path.write_bytes((self.root / ".large" / value["oid"]).read_bytes())
        oid = self._head(repo)
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{oid}", "commitOid": oid}

    def _store(self, data: bytes) -> None:
        (self.root / ".large").mkdir(exist_ok=True)
        (self.root / ".large" / hashlib.sha256(data).hexdigest()).write_bytes(data)

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": _oid(data, lfs=False)}
        if self.lfs and name.endswith(self.lfs):
            entry["lfs"] = {"oid": _oid(data, lfs=True), "size": len(data), "pointerSize": 130}
        return entry

    def _mode(self, repo: str, name: str) -> dict[str, Any]:
        path, lfs = self.root / repo / name, name.endswith(self.lfs) if self.lfs else False
        return {
            "path": name,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": False,
            "oid": _oid(path.read_bytes(), lfs) if path.is_file() else None,
        }

    def _head(self, repo: str) -> str:
        content = sorted((name, _oid(data, lfs=False)) for name, data in self.files(repo).items())
        return hashlib.sha1(json.dumps(content).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: object) -> None:
        """Stay out of the tests' output."""

    def _serve(self) -> None:
        body = self._body()
        self.hub.requests.append(f"{self.command} {self.path}")
        for part, status in self.hub.trouble.items():
            if part in self.path:
                return self._fail(status)
        needed = STORAGE_TOKEN if self.path.startswith(("/v1/", "/v2/")) else self.hub.token
        if self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {needed}":
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        if "/resolve/" in self.path:
            return self._send_file()
        return self._send(*self._route(body))

    def _send_file(self) -> None:
        repo, _, rest = self.path.strip("/").partition("/resolve/")
        data = self.hub.files(repo)[rest.partition("/")[2]]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{_oid(data, lfs=False)}"')
        self.send_header("X-Repo-Commit", self.hub._head(repo))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _route(self, body: bytes) -> Answer:
        path, hub = self.path.split("?")[0], self.hub
        repo, last = "/".join(path.removeprefix("/api/models").split("/")[1:3]), path.split("/")[-1]
        space = path.removeprefix("/api/spaces/").removesuffix("/pause")
        routes: dict[str, Callable[[], Answer]] = {
            "/api/repos/create": lambda: hub.create(json.loads(body)),
            "/api/validate-yaml": lambda: (200, {"errors": [], "warnings": []}),
            f"/api/models/{repo}": lambda: hub.info(repo),
            f"/api/models/{repo}/revision/main": lambda: hub.info(repo),
            f"/api/models/{repo}/tree/main": lambda: hub.tree(repo, whole="recursive=true" in self.path.lower()),
            f"/api/spaces/{space}/pause": lambda: hub.pause(space),
            f"/api/models/{repo}/preupload/main": lambda: hub.preupload(repo, json.loads(body)),
            f"/api/models/{repo}/commit/main": lambda: hub.commit(repo, [json.loads(one) for one in body.splitlines()]),
            f"/api/models/{repo}/xet-write-token/main": hub.storage,
            f"/{repo}/info/lfs/objects/batch": lambda: hub.batch(json.loads(body)),
            f"/large/{last}": lambda: hub.put(last, body),
            f"/v1/xorbs/default/{last}": lambda: hub.xorb(last, body),
            "/v1/shards": lambda: hub.shard(body),
        }
        return routes.get(path, lambda: (404, {"error": f"{path} is not served here"}))()

    def _fail(self, status: int | None) -> None:
        if status is None:
            self.close_connection = True
        else:
            said = f"told to answer {status} to {self.headers.get('Authorization')}"
            self._send(status, {"error": f"{said} and to go on {'and on ' * 100}"})

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)


def _oid(data: bytes, lfs: bool) -> str:
    """Git's name of a file's content, or git LFS's."""
    return hashlib.sha256(data).hexdigest() if lfs else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _chunks(xorb: bytes) -> Iterator[bytes]:
    """The chunks of a xorb: each after 8 bytes that hold a version, its stored length, its compression, its length."""
    at = 0
    while xorb[at : at + 7] not in (b"", b"XETBLOB"):
        length, compression = int.from_bytes(xorb[at + 1 : at + 4], "little"), xorb[at + 4]
        if compression:
            raise ValueError("a chunk is compressed; give files of random bytes")
        yield xorb[at + 8 : at + 8 + length]
        at += 8 + length


def _shard_files(shard: bytes) -> Iterator[list[tuple[str, int, int]]]:
    """For each file of a shard its parts: a xorb's name, the first chunk, and the one after the last.

    A shard is made of records of 48 bytes: a header; for each file a head, its parts, as many hashes to check them by,
    and its SHA-256; and an end whose hash is all ones.
    """
    at = 48
    while shard[at : at + 32] != b"\xff" * 32:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        parts = [struct.unpack_from("<4Q8xII", shard, at + 48 * number) for number in range(1, count + 1)]
        yield [("".join(f"{word:016x}" for word in part[:4]), *part[4:]) for part in parts]
        at += 48 * (1 + count + count * bool(flags & 0x80000000) + bool(flags & 0x40000000))
