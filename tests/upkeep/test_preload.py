"""Base models from a hub on this machine into the cache, before somebody asks for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download

from qlora_demo.catalog import SMOLLM2
from qlora_demo.errors import FetchError
from qlora_demo.records import Progress
from qlora_demo.upkeep.preload import preload
from tests.hub_server import OWNERS_TOKEN, HubServer


@pytest.fixture
def hub(hub_server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A hub with one model, in safetensors and in what nobody needs."""
    files = {"config.json": b"{}", "model.safetensors": b"w" * 300, "pytorch_model.bin": b"x", "onnx/model.json": b"y"}
    files["consolidated.safetensors"] = b"w" * 300
    for name, data in files.items():
        path = hub_server.root / "ada/tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    hub_server.private["ada/tiny"] = True
    monkeypatch.setenv("HF_TOKEN", OWNERS_TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return hub_server


def test_what_is_needed_of_a_model_is_in_the_cache_afterwards(hub: HubServer, tmp_path: Path) -> None:
    said: list[Progress] = []
    preload("ada/tiny", said.append, hub.url)
    assert [(one.text, one.fraction) for one in said] == [("config.json", 0.0), ("model.safetensors", 2 / 302)]
    cached = [path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")]
    assert sorted(cached) == ["config.json", "model.safetensors"]
    path = hf_hub_download("ada/tiny", "model.safetensors", endpoint=hub.url, local_files_only=True)
    assert Path(path).read_bytes() == b"w" * 300


def test_of_a_model_in_parts_those_come_that_its_index_names(hub: HubServer, tmp_path: Path) -> None:
    folder = hub.root / "ada/tiny"
    (folder / "model.safetensors").rename(folder / "model-extra.safetensors")
    index = {"weight_map": {"layer.weight": "model-extra.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    preload("ada/tiny", lambda _: None, hub.url)
    cached = [path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")]
    assert sorted(cached) == ["config.json", "model-extra.safetensors", "model.safetensors.index.json"]


def test_a_model_that_the_hub_does_not_give_is_told_without_the_token(hub: HubServer) -> None:
    with pytest.raises(FetchError, match=r"^the hub did not give it \(HfHubHTTPError\); check the name") as error:
        preload("ada/none", lambda _: None, hub.url)
    assert OWNERS_TOKEN not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_told(hub: HubServer) -> None:
    with pytest.raises(FetchError, match=r"^the hub did not give it \(ConnectError\); .* and the network"):
        preload("ada/tiny", lambda _: None, "http://127.0.0.1:9")


@pytest.mark.parametrize("model", [SMOLLM2.name, "{folder}"])
def test_a_bundled_model_or_a_folder_asks_no_hub(hub: HubServer, tmp_path: Path, model: str) -> None:
    preload(model.format(folder=tmp_path), lambda _: None, hub.url)
    assert hub.requests == []
