"""Where models and adapters come from, and what tells two base models apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_demo.catalog import SMOLLM2
from qlora_demo.config import TrainConfig
from qlora_demo.errors import AdapterError, ModelError, RunError
from qlora_demo.records import Column
from qlora_demo.services import Services
from qlora_demo.sources import (
    adapter_bytes,
    find_adapter,
    linear_layers,
    origin_of,
    shape_of,
    weight_names,
    weights_digest,
)


def test_a_run_names_its_base_its_method_and_what_it_was_trained_on(services: Services, tiny_model: Path) -> None:
    run = services.runs.create(TrainConfig(model=str(tiny_model), method="lora"))
    run.adapter.mkdir()
    (run.path / "versions.json").write_text('{"base_weights": "abcd"}', "utf-8")
    found = find_adapter(services.settings, services.runs, run.id)
    assert (found.name, found.adapter, found.model) == (run.id, run.adapter, str(tiny_model))
    assert (found.form, found.digest) == ("16bit", "abcd")


def test_a_bundled_model_is_a_base_column_s_source_and_no_other_s(services: Services, tiny_model: Path) -> None:
    folder = services.settings.models / SMOLLM2.name
    folder.parent.mkdir()
    folder.symlink_to(tiny_model)
    found = origin_of(services.settings, services.runs, Column("base", "base", SMOLLM2.name))
    assert (found.name, found.form, adapter_bytes(found.adapter)) == (SMOLLM2.name, "16bit", 0)
    assert found.model == str(found.adapter) == str(folder)
    with pytest.raises(AdapterError, match="no such run or folder"):
        origin_of(services.settings, services.runs, Column("adapter", "adapter", SMOLLM2.name))


def test_a_run_without_an_adapter_is_refused(services: Services) -> None:
    run = services.runs.create(TrainConfig())
    with pytest.raises(RunError, match=f"run {run.id}: created, it has no adapter"):
        find_adapter(services.settings, services.runs, run.id)


def test_a_folder_is_an_adapter_if_it_names_its_base(services: Services, tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}), "utf-8")
    found = find_adapter(services.settings, services.runs, str(tmp_path))
    assert (found.model, found.digest) == (str(tiny_model), "")


def test_a_folder_may_say_how_its_base_was_stored_and_nf4_is_taken_where_it_does_not(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}), "utf-8")
    told = tmp_path / "base_form.json"
    assert find_adapter(services.settings, services.runs, str(tmp_path)).form == "nf4"
    told.write_text('{"base_form": "int8"}')
    assert find_adapter(services.settings, services.runs, str(tmp_path)).form == "int8"
    for wrong, says in (('{"base_form": "int3"}', "says 'int3'; give one of 16bit"), ("[]", "cannot be read")):
        told.write_text(wrong)
        with pytest.raises(AdapterError, match=f"base_form.json {says}"):
            find_adapter(services.settings, services.runs, str(tmp_path))


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"base_model_name_or_path": 3}', "[" * 100_000])
def test_a_folder_that_names_none_is_refused(services: Services, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_text(content, "utf-8")
    with pytest.raises(AdapterError, match=f"adapter {tmp_path}"):
        find_adapter(services.settings, services.runs, str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/etc/nothing", "a/b/c", "alone", "nobody/nothing"])
def test_what_is_nowhere_is_refused_with_what_was_tried(services: Services, name: str) -> None:
    with pytest.raises(AdapterError, match=f"adapter '{name}': no such run or folder"):
        find_adapter(services.settings, services.runs, name)


def test_the_shape_is_read_from_the_config_alone(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_model / "config.json", tmp_path)
    assert shape_of(str(tmp_path)).num_hidden_layers == 2
    with pytest.raises(ModelError, match="'nobody/nothing' is no bundled model and no folder"):
        shape_of("nobody/nothing")


def test_what_else_lies_beside_a_model_s_weights_is_none_of_it(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    before, layers = weights_digest(str(tmp_path / "model")), linear_layers(str(tmp_path / "model"))
    shutil.copy(tiny_model / "model.safetensors", tmp_path / "model" / "consolidated.safetensors")
    assert (weights_digest(str(tmp_path / "model")), linear_layers(str(tmp_path / "model"))) == (before, layers)
    shards = ["model-00001-of-00002.safetensors", "model-extra.safetensors"]
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": shards[1], "b": shards[0], "c": "../elsewhere"}}), "utf-8")
    assert weight_names([*shards, "consolidated.safetensors"], index) == shards
    assert weight_names(["pytorch.safetensors"], None) == ["pytorch.safetensors"]


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": []}}'])
def test_an_index_that_is_none_is_told(tiny_model: Path, tmp_path: Path, index: str) -> None:
    shutil.copy(tiny_model / "model.safetensors", tmp_path / "model-1-of-1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index, "utf-8")
    with pytest.raises(ModelError, match=f"{tmp_path}: model.safetensors.index.json is damaged"):
        weights_digest(str(tmp_path))


def test_the_digest_tells_models_of_one_shape_apart(tiny_model: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(tiny_model, copy)
    shutil.copytree(tiny_model, other)
    assert weights_digest(str(copy)) == weights_digest(str(tiny_model))
    weights = load_file(other / "model.safetensors")
    name = next(name for name in weights if "layers.1" in name)
    weights[name].view(-1)[0] += torch.tensor(1.0)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert weights_digest(str(other)) != weights_digest(str(tiny_model))


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 100, b"\x02\x00\x00\x00\x00\x00\x00\x00[]"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=f"{tmp_path}: a safetensors file is damaged"):
        weights_digest(str(tmp_path))
