"""Pushing a folder to a model hub that runs on this machine, with the library's own client over real HTTP."""

from __future__ import annotations

import logging
import os
import traceback
from pathlib import Path

import pytest
from huggingface_hub import constants

from qlora_demo.errors import ConfigError, WorkError
from qlora_demo.hub import Hub, HuggingFaceHub

from .hub_server import OWNERS_TOKEN, HubServer

TOKEN = OWNERS_TOKEN
CARD = "---\ntags: [lora]\n---\n# An adapter\n"


@pytest.fixture
def server(hub_server: HubServer) -> HubServer:
    """The hub, by a shorter name."""
    return hub_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter as it is exported, with weights that nothing could compress."""
    made = tmp_path / "out"
    made.mkdir()
    (made / "adapter_model.safetensors").write_bytes(os.urandom(300_000))
    (made / "adapter_config.json").write_text('{"r": 16}', "utf-8")
    (made / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    (made / "README.md").write_text(CARD, "utf-8")
    return made


def _push(server: HubServer | str, folder: Path, token: str = TOKEN) -> str:
    hub: Hub = HuggingFaceHub(server if isinstance(server, str) else server.url)
    return hub.push(folder, "ada/tickets", token=token)


def _failure(server: HubServer | str, folder: Path, token: str = TOKEN) -> str:
    """The message of a push that fails, which is one line without the token, and linked to nothing that holds it."""
    with pytest.raises(WorkError) as error:
        _push(server, folder, token=token)
    assert (error.value.__cause__, error.value.__context__) == (None, None)
    assert token not in "".join(traceback.format_exception(error.value))
    assert token not in repr(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("large", [(), (".safetensors",)], ids=["in the commit", "by Xet"])
def test_every_byte_arrives_and_the_address_is_the_commit_s(
    server: HubServer, folder: Path, large: tuple[str, ...]
) -> None:
    server.lfs = large
    address = _push(server, folder)
    assert server.files("ada/tickets") == _content(folder)
    assert address.startswith(f"{server.url}/ada/tickets/commit/")
    assert any("/v1/shards" in request for request in server.requests) == bool(large)


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_every_byte_arrives_by_git_lfs_where_xet_is_off(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.lfs = (".safetensors",)
    _push(server, folder)
    assert server.files("ada/tickets") == _content(folder)
    assert any(request.startswith("PUT /large/") for request in server.requests)


def test_a_model_takes_the_place_of_the_one_that_was_there(server: HubServer, folder: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    before.mkdir()
    for name in ("config.json", "adapter_model.safetensors", "base_form.json", "model-00001-of-00002.safetensors"):
        (before / name).write_text("{}", "utf-8")
    (before / "NOTES.md").write_text("mine", "utf-8")
    kept = {"NOTES.md": b"mine", "runs/one/adapter/adapter_model.safetensors": b"{}", "checkpoint-9/config.json": b"{}"}
    _push(server, before)
    for name in kept:
        (server.root / "ada/tickets" / name).parent.mkdir(parents=True, exist_ok=True)
        (server.root / "ada/tickets" / name).write_bytes(kept[name])
    _push(server, folder)
    assert server.files("ada/tickets") == _content(folder) | kept


def test_a_second_push_of_the_same_files_gives_the_same_address(server: HubServer, folder: Path) -> None:
    assert _push(server, folder) == _push(server, folder)
    assert sum("/commit/" in request for request in server.requests) == 1


def test_a_name_without_an_owner_is_the_token_s_owner_s(server: HubServer, folder: Path) -> None:
    HuggingFaceHub(server.url).push(folder, "tickets", token=TOKEN)
    assert server.files("ada/tickets") == _content(folder)


def test_a_new_repository_is_private(server: HubServer, folder: Path) -> None:
    _push(server, folder)
    assert server.private == {"ada/tickets": True}


def test_nothing_private_goes_to_a_repository_that_is_public(server: HubServer, folder: Path) -> None:
    _push(server, folder)
    server.private["ada/tickets"] = False
    (folder / "secret.txt").write_text("ours", "utf-8")
    with pytest.raises(ConfigError, match=r"^repo_id: ada/tickets exists already and is public; make it private"):
        _push(server, folder)
    assert "secret.txt" not in server.files("ada/tickets")


def test_a_wrong_token_is_told_and_nothing_arrives(server: HubServer, folder: Path) -> None:
    message = _failure(server, folder, token="hf_SomebodyElse")
    assert message == (
        "ada/tickets: the token may not write there (HTTP 401 Invalid credentials in Authorization header); "
        "use one with write access to it"
    )
    assert server.private == {}


@pytest.mark.parametrize("part", ["/api/repos/create", "/validate-yaml", "/preupload/", "/commit/"])
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (403, "ada/tickets: the token may not write there (HTTP 403"),
        (400, "ada/tickets: the hub refused (HTTP 400"),
        (500, "ada/tickets: the hub failed (HTTP 500"),
    ],
)
def test_a_refusal_at_any_step_is_told_and_no_file_is_there(
    server: HubServer, folder: Path, part: str, status: int, said: str
) -> None:
    server.trouble = {part: status}
    assert _failure(server, folder).startswith(said)
    assert server.files("ada/tickets") == {}


@pytest.mark.parametrize("part", ["/api/repos/create", "/preupload/", "/commit/"])
def test_a_connection_that_drops_is_told_with_the_hub_s_address(server: HubServer, folder: Path, part: str) -> None:
    server.trouble = {part: None}
    message = _failure(server, folder)
    assert message.startswith(f"ada/tickets: {server.url} could not be reached or does not answer as a model hub (")
    assert server.files("ada/tickets") == {}


def test_a_push_that_failed_half_way_can_be_repeated(server: HubServer, folder: Path) -> None:
    server.lfs, server.trouble = (".safetensors",), {"/commit/": 500}
    _failure(server, folder)
    server.trouble = {}
    _push(server, folder)
    assert server.files("ada/tickets") == _content(folder)


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_write_large_files_is_told(server: HubServer, folder: Path, status: int) -> None:
    server.lfs, server.trouble = (".safetensors",), {"/xet-write-token/": status}
    assert _failure(server, folder).startswith("ada/tickets: the token may not write there (")


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_a_storage_that_refuses_is_told_where_the_library_hides_it(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server.lfs, server.trouble = (".safetensors",), {"/large/": 507}
    assert _failure(server, folder).startswith("ada/tickets: the hub failed (HTTP 507")


def test_a_hub_that_is_not_there_is_told(server: HubServer, folder: Path, tmp_path: Path) -> None:
    with HubServer(tmp_path / "gone", TOKEN) as gone:
        address = gone.url
    message = _failure(address, folder)
    assert message.startswith(f"ada/tickets: {address} could not be reached")
    assert message.endswith("Connection refused); check the network and the address, then push again")


def test_a_server_that_is_no_hub_is_told(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "create", lambda _: (200, {"hello": "world"}))
    assert "does not answer as a model hub (KeyError" in _failure(server, folder)


def test_offline_mode_is_told(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert _failure(server, folder) == (
        "ada/tickets: HF_HUB_OFFLINE is set and nothing may leave; unset it and push again"
    )
    assert server.requests == []


def test_a_file_that_goes_away_is_named(server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(_: str) -> tuple[int, dict[str, object]]:
        (folder / "adapter_config.json").unlink()
        return 200, {"id": "ada/tickets", "private": True}

    server.lfs = (".md",)
    monkeypatch.setattr(
        server, "preupload", lambda repo, body: (lose(repo), HubServer.preupload(server, repo, body))[1]
    )
    assert _failure(server, folder) == (
        f"ada/tickets: {folder}/adapter_config.json cannot be read (No such file or directory); "
        "see that it is there and readable"
    )


def test_the_token_is_not_in_what_a_hub_says_back_nor_in_any_log(
    server: HubServer, folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "huggingface_hub")
    server.lfs, server.trouble = (".safetensors",), {"/commit/": 400}
    assert "told to answer 400 to Bearer (token)" in _failure(server, folder)
    server.trouble = {}
    _push(server, folder)
    logged = caplog.text + "".join(capfd.readouterr())
    assert f"POST {server.url}/api/repos/create (authenticated: True)" in logged
    assert TOKEN not in logged


def test_a_long_answer_is_cut_after_the_token_is_taken_out(server: HubServer, folder: Path) -> None:
    server.trouble, server.token = {"/commit/": 400}, TOKEN + "x" * 400
    message = _failure(server, folder, token=server.token)
    assert "Bearer (token)" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "repo_id", ["", "a b", "a/b/c", "-a", "a..b", "a.git", "ada/", "x" * 97, "a\nb", "https://h/a"]
)
def test_what_is_no_repository_s_name_is_refused_before_the_network(
    server: HubServer, folder: Path, repo_id: str
) -> None:
    with pytest.raises(ConfigError) as error:
        HuggingFaceHub(server.url).push(folder, repo_id, token=TOKEN)
    assert str(error.value).startswith(f"repo_id: {repo_id!r} is not a repository name; write name or owner/name")
    assert (error.value.field, server.requests) == ("repo_id", [])


@pytest.mark.parametrize("token", ["", " ", "hf_pasted\n", "hf two", "hf_ünsafe"])
def test_what_is_no_token_is_refused_before_the_network_and_not_repeated(
    server: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ConfigError) as error:
        _push(server, folder, token=token)
    assert (error.value.field, server.requests) == ("token", [])
    assert "hf" not in str(error.value)


def _symlink(folder: Path) -> Path:
    (folder / "config.json").symlink_to(folder / "adapter_config.json")
    return folder / "config.json"


def _pickle(folder: Path) -> Path:
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    return folder / "training_args.bin"


def _subfolder(folder: Path) -> Path:
    (folder / "more.json").mkdir()
    return folder / "more.json"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.json")
    return folder / "pipe.json"


@pytest.mark.parametrize("add", [_symlink, _pickle, _subfolder, _pipe])
def test_a_folder_with_anything_else_is_refused_with_its_name(server: HubServer, folder: Path, add: object) -> None:
    assert callable(add)
    stranger = add(folder)
    with pytest.raises(ConfigError, match=f"^folder: {stranger} is ") as error:
        _push(server, folder)
    assert (error.value.field, server.requests) == ("folder", [])


@pytest.mark.parametrize("name", ["missing", "empty", "file"])
def test_what_is_no_folder_with_files_is_refused(server: HubServer, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"^folder: {tmp_path}/{name} is no folder with files; name one"):
        _push(server, tmp_path / name)
    assert server.requests == []


def test_the_library_s_hub_is_the_default() -> None:
    assert HuggingFaceHub().endpoint == constants.ENDPOINT
