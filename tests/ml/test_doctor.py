"""The doctor's look at models: a real 4-bit product, and each check fails once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import bitsandbytes
import pytest
import torch

from qlora_demo.catalog import SMOLLM2, BundledModel
from qlora_demo.cli import main
from qlora_demo.errors import WorkError
from qlora_demo.ml import doctor
from qlora_demo.settings import Settings
from qlora_demo.sources import weights_digest


@pytest.fixture
def model(home: Path, tiny_model: Path) -> BundledModel:
    """The tiny model as if it were bundled."""
    (home / "models").mkdir()
    (home / "models" / "tiny").symlink_to(tiny_model)
    return replace(SMOLLM2, name="tiny", digest=weights_digest(str(tiny_model)))


def test_all_is_well_here(home: Path, model: BundledModel) -> None:
    checks = {check.name: check for check in doctor.examine(Settings(home), model)}
    assert {"gpu", "number format", "4-bit product", "bundled model"} <= set(checks)
    assert all(check.ok for check in checks.values() if check.needed), checks


def test_a_4_bit_product_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "right on" in doctor.four_bit_product()
    right = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *args: right(*args) * 1.05)
    with pytest.raises(WorkError, match=r"^results differ by \d+\.\d% from those of the dequantized weights"):
        doctor.four_bit_product()


def test_a_product_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_error", lambda found, wanted: float("nan"))
    with pytest.raises(WorkError, match="results differ"):
        doctor.four_bit_product()


def test_kernels_that_are_not_there_are_told_with_what_to_do(
    home: Path, model: BundledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(bitsandbytes.nn, "Linear4bit", missing)
    (check,) = [check for check in doctor.examine(Settings(home), model) if check.name == "4-bit product"]
    assert not check.ok and "no kernel image" in check.found and "python -m bitsandbytes" in check.remedy


def test_a_bundled_model_that_is_missing_is_told(home: Path) -> None:
    (check,) = [check for check in doctor.examine(Settings(home), SMOLLM2) if check.name == "bundled model"]
    assert not check.ok and "is not there yet" in check.found and "qlora_demo fetch" in check.remedy


def test_a_bundled_model_of_other_weights_is_told(home: Path, model: BundledModel) -> None:
    other = replace(model, digest="0" * 16)
    (check,) = [check for check in doctor.examine(Settings(home), other) if check.name == "bundled model"]
    assert not check.ok and "holds other weights" in check.found


def test_a_bundled_model_that_cannot_be_loaded_is_told(home: Path, model: BundledModel) -> None:
    folder, source = home / "models" / "tiny", (home / "models" / "tiny").resolve()
    folder.unlink()
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(b"{}" if path.name == "config.json" else path.read_bytes())
    (check,) = [check for check in doctor.examine(Settings(home), model) if check.name == "bundled model"]
    assert not check.ok and "ModelError" in check.found


@pytest.mark.usefixtures("unusable_gpu")
def test_a_gpu_that_torch_does_not_see_is_told() -> None:
    check = doctor.gpu()
    assert not check.ok and check.found.startswith("driver 470.1 lists NVIDIA T4, and torch ")
    assert "driver that is new enough" in check.remedy


def test_a_gpu_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (3, 7))
    check = doctor.gpu()
    assert not check.ok and "3.7" in check.found and "6.0" in check.remedy


def test_where_triton_does_not_launch_it_is_told_and_not_needed(
    home: Path, model: BundledModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "triton_trouble", lambda: "Failed to find C compiler; install gcc")
    monkeypatch.setattr(doctor, "device", lambda: torch.device("cuda"))
    checks = doctor.examine(Settings(home), model)
    (check,) = [found for found in (next(checks), next(checks), next(checks)) if found.name == "triton"]
    assert (check.ok, check.needed) == (False, False) and "install gcc" in check.found


@pytest.mark.bundled
def test_the_bundled_model_has_the_digest_that_is_expected(
    bundled_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--json"]) in (0, 1)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["bundled model"]["ok"] and "134,515,008 parameters" in checks["bundled model"]["found"]
    assert checks["4-bit product"]["ok"]
