"""What a model hub is asked for: to take a finished folder, to hold runs, to pause a Space.

The token is the caller's: it is read from nowhere else, kept nowhere, and stands in no message, log or error.  The
libraries below put the whole request, headers and all, into their errors, so none of those is passed on or linked to.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol, TypeVar

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from .errors import ConfigError, DemoError, WorkError, one_line

T = TypeVar("T")

SUFFIXES = frozenset({".safetensors", ".json", ".md", ".txt", ".model", ".jinja"})
"""What is published; nothing among it can run code where it is loaded."""

_MODEL = ("*.safetensors", "*.safetensors.index.json", "*config.json", "base_form.json")
"""What a push takes away at the repository's top where it brings none: beside a merge, a former adapter would be put on
it once more."""
_TOKEN = re.compile(r"[!-~]+")
_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
"""How hf_xet, which sends the weights, tells in the text of a ConnectionError what it was answered."""
_LONGEST = 300
"""Characters kept of what a library or the hub says."""


class Hub(Protocol):
    """Where finished folders go."""

    def push(self, folder: Path, repo_id: str, *, token: str) -> str:
        """Upload every file of `folder` to a private repository, making it where there is none; the commit's address.

        Raises `ConfigError` where an argument is wrong, and `WorkError` where the push failed.
        """
        ...

    def sync(self, files: Mapping[str, Path], repo_id: str, *, token: str) -> int:
        """Have a private repository hold the files under their names, in one commit; how many were not there as they
        are, told by their hashes, and were sent.  Raises as `push` does."""
        ...

    def pause(self, space: str, *, token: str) -> None:
        """Stop a Space's hardware until its owner starts it again.  Raises as `push` does."""
        ...


class HuggingFaceHub:
    """The Hugging Face Hub, or another server that speaks its API at `endpoint`."""

    def __init__(self, endpoint: str | None = None) -> None:
        self.endpoint = endpoint or constants.ENDPOINT

    def push(self, folder: Path, repo_id: str, *, token: str) -> str:
        """See `Hub.push`.  A repository that exists keeps its visibility, so nothing private goes to a public one."""
        _check_folder(folder)
        return self._ask(repo_id, token, lambda api: _push(api, folder, repo_id))

    def sync(self, files: Mapping[str, Path], repo_id: str, *, token: str) -> int:
        """See `Hub.sync`."""
        return self._ask(repo_id, token, lambda api: _sync(api, files, repo_id))

    def pause(self, space: str, *, token: str) -> None:
        """See `Hub.pause`."""
        self._ask(space, token, lambda api: api.pause_space(space))

    def _ask(self, repo_id: str, token: str, what: Callable[[HfApi], T]) -> T:
        _check_repo_id(repo_id)
        require_token("token", token)
        try:
            return what(HfApi(self.endpoint, token))
        except DemoError:
            raise
        except Exception as exc:  # noqa: BLE001 - any of them may hold the token: only a line about it goes on
            failure = WorkError(f"{repo_id}: {_reason(exc, self.endpoint, token)}")
        raise failure


def is_repo_id(text: str) -> bool:
    """Whether a hub would take this for a repository's name, with or without its owner's."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _check_repo_id(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        remedy = "write name or owner/name with letters, digits, single - and ., and _ (at most 96 characters each)"
        raise ConfigError("repo_id", f"{repo_id!r} is not a repository name; {remedy}")


def require_token(field: str, token: str) -> None:
    """Raises `ConfigError` where a field holds what is no access token: a line end in a header is refused deep below,
    with the header in the message."""
    if not _TOKEN.fullmatch(token):
        what = "holds a space, a line end or a sign that no token has" if token else "is empty"
        raise ConfigError(field, f"{what}; paste an access token that may write")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise ConfigError("folder", f"{folder} is no folder with files; name one that was exported")
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            raise ConfigError("folder", f"{entry} is a symlink; put the file itself there, or remove it")
        if not entry.is_file() or entry.suffix not in SUFFIXES:
            allowed = " ".join(sorted(SUFFIXES))
            raise ConfigError("folder", f"{entry} is not published, only files of {allowed} are; remove it")


def _push(api: HfApi, folder: Path, repo_id: str) -> str:
    repo = _open(api, repo_id)
    former = [glob.escape(name) for name in _former_model(api, repo)]
    return api.upload_folder(repo_id=repo, folder_path=folder, delete_patterns=former).commit_url


def _former_model(api: HfApi, repo: str) -> list[str]:
    """A model's or an adapter's files at a repository's top; what lies in its folders is not of it."""
    names = [entry.path for entry in api.list_repo_tree(repo) if isinstance(entry, RepoFile)]
    return [name for name in names if any(fnmatch(name, pattern) for pattern in _MODEL)]


def _open(api: HfApi, repo_id: str) -> str:
    repo = api.create_repo(repo_id, private=True, exist_ok=True).repo_id
    if not api.repo_info(repo).private:
        raise ConfigError("repo_id", f"{repo} exists already and is public; make it private on the hub or name another")
    return repo


def _sync(api: HfApi, files: Mapping[str, Path], repo_id: str) -> int:
    repo = _open(api, repo_id)
    tree = [entry for entry in api.list_repo_tree(repo, recursive=True) if isinstance(entry, RepoFile)]
    there = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree}
    missing = {name: path for name, path in files.items() if there.get(name) not in _hashes(path)}
    if missing:
        added = [CommitOperationAdd(name, path) for name, path in missing.items()]
        api.create_commit(repo, added, commit_message=f"{len(added)} files of {len(files)}")
    return len(missing)


def _hashes(path: Path) -> tuple[str, str]:
    """What a hub calls a file's content: by git LFS, and by git."""
    git, lfs = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            git.update(part)
            lfs.update(part)
    return lfs.hexdigest(), git.hexdigest()


def _reason(exc: Exception, endpoint: str, token: str) -> str:
    """One line that says what failed and what to do."""
    root = _root(exc)
    if isinstance(root, HfHubHTTPError):
        status = root.response.status_code
        return _refusal(status, _line(f"HTTP {status} {root.server_message or ''}", token))
    said = _line(root, token)
    if hidden := _STATUS.search(said):
        return _refusal(int(hidden[1]), said)
    if isinstance(root, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and nothing may leave; unset it and push again"
    if isinstance(root, OSError) and root.filename is not None:
        return f"{root.filename} cannot be read ({root.strerror}); see that it is there and readable"
    return (
        f"{endpoint} could not be reached or does not answer as a model hub ({type(root).__name__}: {said}); "
        "check the network and the address, then push again"
    )


def _refusal(status: int, said: str) -> str:
    if status in (401, 403):
        return f"the token may not write there ({said}); use one with write access to it"
    if status >= 500:
        return f"the hub failed ({said}); push again in a while"
    return f"the hub refused ({said}); fix that and push again"


def _root(exc: BaseException) -> BaseException:
    """What it began with: a library that uploads in threads hides the hub's answer behind an error of its own."""
    while exc.__cause__ is not None and not isinstance(exc, HfHubHTTPError):
        exc = exc.__cause__
    return exc


def _line(text: object, token: str) -> str:
    return one_line(str(text).replace(token, "(token)"), _LONGEST)
