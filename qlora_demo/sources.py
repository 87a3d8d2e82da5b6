"""Where base models and adapters come from, found without torch: a bundled name, a folder, a hub id, a run."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from .catalog import BUNDLED_MODELS, SHAPES, bundled_path, is_fetched, is_shape, shape_named
from .columns import is_bundled
from .errors import AdapterError, ModelError, RunError, one_line
from .memory import ModelShape
from .records import BaseForm, Column
from .runs import ADAPTER_WEIGHTS, RunStore
from .settings import Settings

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
BASE_FORM_FILE = "base_form.json"
"""Beside an adapter's own files: how the base that it was trained on was stored, which they do not say."""
_DIGEST_BYTES = 4096
_WHOLE = "model.safetensors"
WEIGHTS_INDEX = f"{_WHOLE}.index.json"
_DAMAGED = (OSError, ValueError, TypeError, KeyError, RecursionError, struct.error)
_LARGEST_HEADER = 100_000_000
"""Bytes; safetensors itself reads no larger one."""
_HUB_ERRORS = (OSError, ValueError, HfHubHTTPError, HFValidationError)


@dataclass(frozen=True)
class Origin:
    """An adapter and the base it belongs to.  ``name`` is the run's id, the folder or the hub id as it was given;
    ``model`` is what `from_pretrained` takes, ``form`` how the base was stored; ``digest`` that of the base it was
    trained on, where that is known; ``version`` tells the adapter's files from others under the same name.  Where there
    is a base only, ``adapter`` is the base's own folder."""

    name: str
    adapter: Path
    model: str
    form: BaseForm
    version: str
    digest: str = ""


def resolve(settings: Settings, model: str) -> str:
    """A bundled name, a shape, a local folder or a hub id -> what the loaders in `ml.load` take.

    Raises `ModelError` that says what was tried.
    """
    if is_shape(model):
        shape_named(model)
        return model
    if model in BUNDLED_MODELS:
        if not is_fetched(settings, model):
            raise ModelError(
                f"model: {model} is not fetched yet; run `python -m qlora_demo fetch` or wait for the page to do it"
            )
        return str(bundled_path(settings, model))
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model: folder {folder} holds no config.json; give a folder saved by save_pretrained")
        if not any(folder.glob("*.safetensors")):
            raise ModelError(
                f"model: folder {folder} holds no .safetensors file, and nothing else is read; convert the weights"
            )
        return str(folder.resolve())
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"model: {model!r} is no folder here; give {known_models()}, an existing folder, or a hub id")
    return model


def shape_of(source: str) -> ModelShape:
    """The dimensions of a resolved base model, from its config.json alone."""
    if is_shape(source):
        return shape_named(source)[1]
    try:
        path = Path(source) / "config.json"
        path = path if path.is_file() else Path(hf_hub_download(source, "config.json"))
        config = json.loads(path.read_text("utf-8"))
    except (*_HUB_ERRORS, RecursionError) as exc:
        raise not_given(source, exc) from exc
    inner = config.get("text_config", config) if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        raise ModelError(f"model: {path} holds no JSON object; give a folder saved by save_pretrained")
    return ModelShape.from_config(inner)


def planned_shape(settings: Settings, model: str) -> ModelShape:
    """The dimensions of a model that may be no more than a name in the catalog: no weights are needed."""
    return SHAPES[model] if model in SHAPES else shape_of(resolve(settings, model))


def origin_of(settings: Settings, runs: RunStore, column: Column) -> Origin:
    """Where a column's weights come from; a base may be named by a bundled model, before any run has an adapter."""
    if is_bundled(column):
        folder = resolve(settings, column.source)
        return Origin(column.source, Path(folder), folder, "16bit", "")
    return find_adapter(settings, runs, column.source)


def find_adapter(settings: Settings, runs: RunStore, name: str) -> Origin:
    """An adapter by a run's id, a folder or a hub id.

    Raises `RunError` for a run that has none, `AdapterError` for a folder or id that holds none.
    """
    if name in runs.names():
        run = runs.get(name)
        if not run.has_adapter:
            raise RunError(f"run {run.id}: {run.state.status}, it has no adapter; choose a finished run")
        digest = runs.versions(name).get("base_weights", "")
        return Origin(
            name, run.adapter, resolve(settings, run.config.model), run.config.base_form, _version(run.adapter), digest
        )
    folder = Path(name).expanduser()
    if not folder.is_dir():
        folder = _download_adapter(name)
    base = _base_of(folder)
    return Origin(name, folder, resolve(settings, base), _form_of(folder), _version(folder))


def adapter_bytes(adapter: Path) -> int:
    """Bytes of an adapter's weights, as stored."""
    path = adapter / ADAPTER_WEIGHTS
    return path.stat().st_size if path.is_file() else 0


def weights_digest(source: str) -> str:
    """Sixteen hex digits over the name, type, shape and first 4 KiB of every tensor of a resolved base model.

    Any training of all weights changes nearly every tensor, so this tells models of one shape apart in no time,
    whatever the precision they are loaded in.  A shape's random weights follow from its name.
    """
    if is_shape(source):
        return hashlib.blake2b(source.encode(), digest_size=8).hexdigest()
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(source, local_files_only=True))
        except _HUB_ERRORS as exc:
            raise not_given(source, exc) from exc
    seen = hashlib.blake2b(digest_size=8)
    try:
        for path in weight_files(folder):
            _digest_file(path, seen)
    except _DAMAGED as exc:
        raise ModelError(f"model: {folder}: a safetensors file is damaged ({exc}); fetch the model again") from exc
    return seen.hexdigest()


def linear_layers(source: str) -> list[str]:
    """Full names of the layers with a matrix of weights, but the embeddings, of a resolved base model that is a folder;
    none where it is not: its files are elsewhere."""
    try:
        headers = [_header(path) for path in weight_files(Path(source))]
        matrices = [name for header in headers for name, facts in header.items() if len(facts["shape"]) == 2]
    except _DAMAGED as exc:
        raise ModelError(f"model: {source}: a safetensors file is damaged ({exc}); fetch the model again") from exc
    return [name.removesuffix(".weight") for name in matrices if name.endswith(".weight") and "embed" not in name]


def known_models() -> str:
    """The bundled models' names, for messages."""
    return " or ".join(BUNDLED_MODELS)


def not_given(source: str, exc: Exception) -> ModelError:
    """The error for a base model that neither a folder nor the hub gave."""
    tried = "the hub's cache" if constants.HF_HUB_OFFLINE else f"the hub at {constants.ENDPOINT}"
    return ModelError(
        f"model: {source!r} is no bundled model and no folder, and {tried} did not give it "
        f"({type(exc).__name__}: {one_line(exc)}); "
        f"give {known_models()}, a folder, or a hub id that can be reached"
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that the library reads of a model's folder: others may hold the same weights once more.  Raises
    `ModelError` where its index is damaged."""
    names = [path.name for path in folder.glob("*.safetensors")]
    index = folder / WEIGHTS_INDEX
    try:
        return [folder / name for name in weight_names(names, index if index.is_file() else None)]
    except _DAMAGED as exc:
        raise ModelError(f"model: {folder}: {index.name} is damaged ({exc}); fetch the model again") from exc


def weight_names(names: Collection[str], index: Path | None) -> list[str]:
    """Those of a model's safetensors files that the library reads, sorted: the one that holds all, else those that the
    index names, else all.  Raises `ValueError`, `TypeError` or `KeyError` where the index is none."""
    if _WHOLE in names:
        return [_WHOLE]
    named = dict(json.loads(index.read_text("utf-8"))["weight_map"]).values() if index else names
    return sorted(set(names) & set(named))


def _header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of its tensors: ``dtype``, ``shape`` and ``data_offsets`` by name."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(_LARGEST_HEADER, path.stat().st_size):
            raise ValueError(f"{path.name} says its header has {length} bytes")
        header: dict[str, Any] = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has a {type(header).__name__} for its header")
    header.pop("__metadata__", None)
    return header


def _digest_file(path: Path, seen: Any) -> None:
    header = _header(path)
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        for name in sorted(header):
            start, end = header[name]["data_offsets"]
            if not 0 <= start <= end <= path.stat().st_size - 8 - length:
                raise ValueError(f"{path.name}: {name[:80]!r} begins at byte {start} and ends at {end}")
            seen.update(f"{name} {header[name]['dtype']} {header[name]['shape']}".encode())
            file.seek(8 + length + start)
            seen.update(file.read(min(_DIGEST_BYTES, end - start)))


def _download_adapter(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise AdapterError(f"adapter {name!r}: no such run or folder; `runs list` shows the runs")
    try:
        return Path(snapshot_download(name, allow_patterns=[*ADAPTER_FILES, "tokenizer*", "*.jinja", "*.json"]))
    except _HUB_ERRORS as exc:
        raise AdapterError(
            f"adapter {name!r}: no such run or folder, and the hub did not give it ({type(exc).__name__}); "
            f"give a run's id, a folder with {ADAPTER_CONFIG}, or a hub id that can be reached"
        ) from exc


def _version(adapter: Path) -> str:
    """When an adapter's files were last written, and how large they are."""
    found = [(adapter / name).stat() for name in ADAPTER_FILES if (adapter / name).is_file()]
    return " ".join(f"{one.st_mtime_ns} {one.st_size}" for one in found)


def _form_of(folder: Path) -> BaseForm:
    """How an adapter's base was stored in training; NF4 where the folder does not say: this house did not make it."""
    path = folder / BASE_FORM_FILE
    if not path.is_file():
        return "nf4"
    try:
        form = json.loads(path.read_text("utf-8"))["base_form"]
    except _DAMAGED as exc:
        raise AdapterError(f"adapter {folder}: {path.name} cannot be read ({type(exc).__name__}); remove it") from exc
    if form not in get_args(BaseForm):
        raise AdapterError(f"adapter {folder}: {path.name} says {form!r}; give one of {', '.join(get_args(BaseForm))}")
    known: BaseForm = form
    return known


def _base_of(folder: Path) -> str:
    path = folder / ADAPTER_CONFIG
    try:
        base = json.loads(path.read_text("utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise AdapterError(
            f"adapter {folder}: {path.name} is missing or names no base model ({type(exc).__name__}); "
            "give a folder saved by PEFT"
        ) from exc
    if not isinstance(base, str) or not base:
        raise AdapterError(f"adapter {folder}: base_model_name_or_path is {base!r}; write the base model's name there")
    return base
