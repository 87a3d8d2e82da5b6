"""Base models into the hub's cache before somebody asks for them: QLORA_DEMO_PRELOAD names them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi

from ..catalog import BUNDLED_MODELS
from ..errors import FetchError
from ..hub import SUFFIXES
from ..records import Progress, Report
from ..sources import WEIGHTS_INDEX, weight_names


def preload(model: str, report: Report, endpoint: str | None = None) -> None:
    """Download what is needed of a hub's base model; of a bundled one or a folder, which are fetched or here, nothing.

    Raises `FetchError` where the hub does not give it.
    """
    if model in BUNDLED_MODELS or Path(model).expanduser().is_dir():
        return
    try:
        _download(HfApi(endpoint), model, report)
    except Exception as exc:  # noqa: BLE001 - the HTTP client below the hub's raises errors of its own, too
        why = type(exc).__name__
    else:
        return
    raise FetchError(
        f"the hub did not give it ({why}); check the name in QLORA_DEMO_PRELOAD, HF_TOKEN if it is gated, "
        "and the network"
    )


def _download(api: HfApi, model: str, report: Report) -> None:
    files = api.model_info(model, files_metadata=True).siblings or []
    sizes = {one.rfilename: one.size or 0 for one in files if _is_needed(one.rfilename)}
    weights = [name for name in sizes if name.endswith(".safetensors")]
    index = Path(api.hf_hub_download(model, WEIGHTS_INDEX)) if WEIGHTS_INDEX in sizes else None
    for other in set(weights) - set(weight_names(weights, index)):
        del sizes[other]
    done, total = 0, sum(sizes.values()) or 1
    for name, size in sizes.items():
        report(Progress(name, done / total))
        api.hf_hub_download(model, name)
        done += size


def _is_needed(name: str) -> bool:
    """Other formats of the same weights lie in folders, or are no safetensors."""
    path = PurePosixPath(name)
    return len(path.parts) == 1 and path.suffix in SUFFIXES
