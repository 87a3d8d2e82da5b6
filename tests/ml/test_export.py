"""What leaves the house is what was measured, whole, and loads plainly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from qlora_demo.columns import parse_all
from qlora_demo.compose import build_services
from qlora_demo.errors import RequestError, WrongModel
from qlora_demo.ml.load import precision_of, read_adapter_config
from qlora_demo.records import ExportKind, ExportRequest
from qlora_demo.runs import Run
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from tests.ml.test_engine import merging, run_with_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """One app for all tests here."""
    made = build_services(Settings(tmp_path_factory.mktemp("export")))
    yield made
    made.engine.release()


@pytest.fixture(autouse=True)
def short_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's answers do not end; nothing here depends on their length."""
    monkeypatch.setattr("qlora_demo.ml.judge.ANSWER_TOKENS", 12)
    monkeypatch.setattr("qlora_demo.ml.evaluate.ANSWER_TOKENS", 12)


@pytest.fixture(scope="module")
def run(services: Services, tiny_model: Path) -> Run:
    return run_with_rows(services, tiny_model, "qlora")


@pytest.mark.parametrize("rows", ["", '{"text": "no chat"}\n'])
def test_a_run_without_a_row_to_compare_on_is_merged_and_verified_all_the_same(
    services: Services, tiny_model: Path, tmp_path: Path, rows: str
) -> None:
    run = run_with_rows(services, tiny_model, "qlora")
    for split in ("test", "hard"):
        (run.path / "heldout" / f"{split}.jsonl").write_text(rows, "utf-8")
    *_, last = services.engine().export(merging(run, tmp_path), Halt())
    assert last.result["verified"] and "fidelity" not in last.result
    assert "KL" not in (tmp_path / "merged" / "README.md").read_text("utf-8")


def test_an_export_asks_for_no_room_to_answer(services: Services, tiny_model: Path, tmp_path: Path) -> None:
    run = run_with_rows(services, tiny_model, "qlora")
    long = {"messages": [{"role": "user", "content": "x" * 200}, {"role": "assistant", "content": "y"}]}
    (run.path / "heldout" / "test.jsonl").write_text(json.dumps(long) + "\n", "utf-8")
    *_, last = services.engine().export(merging(run, tmp_path), Halt())
    assert last.result["fidelity"]["rows"] == 1


@pytest.mark.parametrize("method", ["lora", "lora-8bit"])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_every_method_has_a_fidelity_and_can_be_exported(
    services: Services, tiny_model: Path, tmp_path: Path, method: str
) -> None:
    run = run_with_rows(services, tiny_model, method)
    *_, last = services.engine().fidelity(run.id, 2, Halt())
    bases = ["original"] if method == "lora" else ["original", "dequantized"]
    assert list(last.result["merges"]) == [f"{name}:{onto}" for name in ("merged", "merged-4bit") for onto in bases]
    assert last.result["sentence"]
    kinds: tuple[ExportKind, ...] = ("adapter", "merged", "merged-4bit")
    for what in kinds:
        *_, last = services.engine().export(ExportRequest(run.id, what, None, tmp_path / what), Halt())
        assert (tmp_path / what / "README.md").is_file()


def test_merge_saves_a_verified_model_that_loads_plainly(services: Services, run: Run, tmp_path: Path) -> None:
    *_, last = services.engine().export(merging(run, tmp_path), Halt())
    assert (last.result["onto"], last.result["verified"]) == ("dequantized", True)
    assert last.result["fidelity"]["kl_mean"] < 0.01
    loaded = AutoModelForCausalLM.from_pretrained(last.result["path"])
    assert loaded.dtype == torch.bfloat16
    steps = services.engine().export(merging(run, tmp_path), Halt())
    with pytest.raises(RequestError, match="exists already"):
        assert not any(step.progress.text.startswith("merging") for step in steps), "it is refused before the work"


def test_a_4_bit_merge_is_saved_in_4_bit_and_goes_onto_the_original_base(
    services: Services, run: Run, tmp_path: Path
) -> None:
    *_, last = services.engine().export(merging(run, tmp_path, "merged-4bit"), Halt())
    assert (last.result["onto"], last.result["verified"]) == ("original", True)
    reloaded = AutoModelForCausalLM.from_pretrained(last.result["path"])
    assert precision_of(reloaded) == "nf4"
    assert not (tmp_path / "merged" / "bf16").exists()


def test_an_exported_adapter_loads_and_brings_its_card(services: Services, run: Run, tmp_path: Path) -> None:
    *_, last = services.engine().export(merging(run, tmp_path, "adapter"), Halt())
    folder = Path(last.result["path"])
    assert read_adapter_config(folder).r == 4
    assert run.id in (folder / "README.md").read_text("utf-8")


def test_a_merge_that_reloads_differently_leaves_nothing(
    services: Services, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LlamaForCausalLM.save_pretrained

    def damaged(model: Any, folder: Path) -> None:
        model.lm_head.weight.data[5] += 1
        whole(model, folder)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", damaged)
    with pytest.raises(WrongModel, match="gives other logits"):
        list(services.engine().export(merging(run, tmp_path), Halt()))
    assert list(tmp_path.glob("*merged*")) == []


def test_a_base_whose_files_changed_since_it_was_read_is_not_merged_onto(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    run = run_with_rows(services, model, "lora")
    list(services.engine().load(parse_all(["adapter"], run.id), Halt()))
    other = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.model.norm.weight.add_(1)
        other.model.layers[0].mlp.up_proj.weight.add_(1)
    other.save_pretrained(model)
    with pytest.raises(WrongModel, match="are no longer those in memory"):
        list(services.engine().export(merging(run, tmp_path), Halt()))
    assert not (tmp_path / "merged").exists()
    services.engine().release()


def test_a_stopped_merge_leaves_nothing(services: Services, run: Run, tmp_path: Path) -> None:
    halt = Halt()
    for step in services.engine().export(merging(run, tmp_path), halt):
        if step.progress.text.startswith("reloading"):
            halt.set()
    assert list(tmp_path.glob("*merged*")) == []
