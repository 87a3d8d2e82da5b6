"""Model and adapter folders made to run code, to fill the memory, or to be what they are not: refused with a reason."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from qlora_demo.columns import parse_all
from qlora_demo.config import TrainConfig
from qlora_demo.errors import AdapterError, ConfigError, DemoError, ModelError
from qlora_demo.hub import HuggingFaceHub
from qlora_demo.ml.data import load_splits
from qlora_demo.ml.load import load_16bit, load_adapter, load_tokenizer
from qlora_demo.ml.variants import Variants
from qlora_demo.plan.planning import plan_training
from qlora_demo.services import Services
from qlora_demo.sources import find_adapter, resolve, shape_of, weights_digest
from tests.tiny import save_adapter

RAN = "a hostile file ran code"


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that code in a hostile folder would make."""
    return tmp_path / "ran"


@pytest.fixture
def code(mark: Path) -> str:
    """Python that would tell that it ran."""
    return f"open({str(mark)!r}, 'w').write({RAN!r})\nclass Config: ...\nclass Model: ...\nclass Tokenizer: ...\n"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter's folder, to damage."""
    return save_adapter(tiny_model, tmp_path / "adapter")


class Code:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def with_header(header: Any, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text


ONE = {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}
WEIGHTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "cut in its header": lambda whole: whole[:100],
    "cut in its data": lambda whole: whole[:-100],
    "header length far too large": lambda whole: struct.pack("<Q", 1 << 62) + whole[8:],
    "header length beyond the file": lambda whole: struct.pack("<Q", len(whole)) + whole[8:],
    "header is a list": lambda whole: with_header([1, 2]),
    "header is a text": lambda whole: with_header("x"),
    "header is 100k lists deep": lambda whole: with_header(b"[" * 100_000),
    "offsets below zero": lambda whole: with_header({"w": ONE | {"data_offsets": [-8, 0]}}),
    "offsets the wrong way": lambda whole: with_header({"w": ONE | {"data_offsets": [8, 0]}}),
    "offsets beyond the file": lambda whole: with_header({"w": ONE | {"data_offsets": [0, 1 << 60]}}),
    "shape below zero": lambda whole: with_header({"w": ONE | {"shape": [-4]}}) + b"x" * 8,
    "not a safetensors file": lambda whole: b"PK\x03\x04" + whole,
}


@pytest.mark.parametrize("damage", WEIGHTS)
def test_damaged_weights_are_refused_by_name(model: Path, adapter: Path, damage: str, tiny_model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(WEIGHTS[damage](weights.read_bytes()))
    with pytest.raises(ModelError, match=f"model: folder {model} cannot be read"):
        load_16bit(str(model))
    if damage != "shape below zero":  # which the digest does not depend on
        with pytest.raises(ModelError, match=f"{model}: a safetensors file is damaged"):
            weights_digest(str(model))
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(WEIGHTS[damage](weights.read_bytes()))
    with pytest.raises(AdapterError, match=f"adapter {adapter}"):
        load_adapter(load_16bit(str(tiny_model)), adapter)


def test_a_pickle_is_not_read_whatever_it_is_called(
    services: Services, model: Path, adapter: Path, mark: Path, tiny_model: Path
) -> None:
    trap = pickle.dumps({"w": Code(mark)})
    for path in (model / "model.safetensors", adapter / "adapter_model.safetensors"):
        path.write_bytes(trap)
    with pytest.raises(ModelError, match="cannot be read"):
        load_16bit(str(model))
    with pytest.raises(AdapterError, match="damaged"):
        load_adapter(load_16bit(str(tiny_model)), adapter)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"holds no \.safetensors file, and nothing else is read"):
        resolve(services.settings, str(model))
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is missing"):
        load_adapter(load_16bit(str(tiny_model)), adapter)
    assert not mark.exists()


def test_code_in_a_model_s_folder_does_not_run(model: Path, code: str, mark: Path, monkeypatch: Any) -> None:
    """Nor does anything ask on the terminal whether it may."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    (model / "trap.py").write_text(code, "utf-8")
    edit(
        model / "config.json",
        model_type="trap",
        auto_map={"AutoConfig": "trap.Config", "AutoModelForCausalLM": "trap.Model"},
    )
    edit(
        model / "tokenizer_config.json",
        tokenizer_class="Trap",
        auto_map={"AutoTokenizer": ["trap.Tokenizer", "trap.Tokenizer"]},
    )
    with pytest.raises(ModelError, match=r"cannot be read .*contains custom code"):
        load_16bit(str(model))
    with pytest.raises(ModelError, match="cannot be read"):
        load_tokenizer(str(model))
    assert not mark.exists()


CONFIGS: dict[str, Any] = {
    "deep": "[" * 100_000,
    "a list": "[]",
    "a text": '"x"',
    "no JSON": "\x00\xff",
    "words for numbers": {"hidden_size": "wide", "num_attention_heads": []},
    "no heads": {"num_attention_heads": 0, "head_dim": None},
    "another kind of model": {"model_type": "bert", "architectures": ["BertModel"]},
    "quantized by code that is not here": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "a size that no memory holds": {"hidden_size": 1 << 40},
}


@pytest.mark.parametrize("content", CONFIGS)
def test_a_model_s_config_that_makes_no_sense_is_refused(model: Path, content: str) -> None:
    path, wrong = model / "config.json", CONFIGS[content]
    edit(path, **wrong) if isinstance(wrong, dict) else path.write_text(wrong, "utf-8")
    with pytest.raises(ModelError, match=r"^model: "):
        load_16bit(str(model))
    try:
        shape_of(str(model))
    except DemoError as exc:
        assert "config.json" in str(exc) or "model" in str(exc)


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{}", "\x00", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused(model: Path, content: str) -> None:
    (model / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(ModelError, match=f"^model: folder {model} cannot be read"):
        load_tokenizer(str(model))


ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "a module to import": ({"megatron_config": {"a": 1}, "megatron_core": "trap"}, "megatron_config is not supported"),
    "layers to multiply": ({"layer_replication": [[0, 2]] * 10_000}, "layer_replication is not supported"),
    "a rank that no memory holds": ({"r": 1 << 30}, r"says rank \[1073741824\] and its weights have \[4\]"),
    "a rank for one layer": ({"rank_pattern": {"q_proj": 1 << 30}}, r"and its weights have \[4\]"),
    "a pattern without an end": ({"target_modules": "((a|_|[a-z.0-9])+)+!"}, "repeats too much"),
    "many repetitions": ({"target_modules": ".*.*.*.*.*.*.*.*.*.*!"}, "repeats too much"),
    "whole layers": ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
    "tokens of its own": ({"trainable_token_indices": [1]}, "trainable_token_indices is not supported"),
    "biases of the base": ({"bias": "lora_only"}, "bias 'lora_only' is not supported"),
    "another kind": ({"peft_type": "IA3"}, "is .*IA3, not LORA|cannot be read"),
    "adapters from elsewhere": ({"peft_type": "XLORA", "adapters": {"a": "nobody/x"}}, "adapter"),
    "no kind": ({"peft_type": "NONE"}, "cannot be read"),
    "words for numbers": ({"r": "four"}, "adapter"),
    "another base than others have": ({"init_lora_weights": "olora"}, "changes the base that others share"),
    "layers that are not there": ({"target_modules": ["nowhere"]}, "does not fit"),
}


@pytest.mark.parametrize("what", ADAPTERS)
def test_an_adapter_that_asks_for_more_than_lora_is_refused(
    adapter: Path, what: str, tiny_model: Path, mark: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "trap.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(adapter)
    changes, reason = ADAPTERS[what]
    edit(adapter / "adapter_config.json", **changes)
    with pytest.raises(AdapterError, match=reason):
        load_adapter(load_16bit(str(tiny_model)), adapter)
    assert not mark.exists()


def test_an_adapter_s_own_idea_of_its_class_is_not_followed(
    adapter: Path, tiny_model: Path, mark: Path, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "trap.py").write_text(code, "utf-8")
    monkeypatch.syspath_prepend(adapter)
    edit(adapter / "adapter_config.json", auto_mapping={"base_model_class": "Model", "parent_library": "trap"})
    load_adapter(load_16bit(str(tiny_model)), adapter)
    assert not mark.exists()


@pytest.mark.parametrize("base", ["http://127.0.0.1:1/x", "file:///etc/passwd", "..", "", "nobody/nothing", "a\x00b"])
def test_an_adapter_whose_base_is_no_model_loads_nothing(
    services: Services, adapter: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    held = Variants(services.settings, services.runs)
    with pytest.raises((ModelError, AdapterError), match=r"^(model|adapter)"):
        list(held.load(parse_all([f"adapter@{adapter}"], "run")))
    assert held.held == {}


def test_an_adapter_that_brings_weights_for_the_base_itself_is_refused(adapter: Path, tiny_model: Path) -> None:
    path, base = adapter / "adapter_model.safetensors", load_16bit(str(tiny_model))
    own = base.get_input_embeddings().weight.detach().float().numpy()
    save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": own + 1}, path)
    with pytest.raises(AdapterError, match=r"holds base_model\.model\.model\.embed_tokens\.weight beside"):
        load_adapter(base, adapter)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("base_model.model.model.", "base_model.model.language_model.model.", "is no layer of the base"),
        ("layers.1.mlp.up_proj.", None, "lacks .*layers.1.mlp.up_proj.* which its configuration asks for"),
    ],
)
def test_an_adapter_that_is_not_on_every_layer_it_names_does_not_answer(
    adapter: Path, tiny_model: Path, first: bool, was: str, becomes: str | None, said: str
) -> None:
    base: Any = load_16bit(str(tiny_model))
    if not first:
        base = load_adapter(load_adapter(base, adapter, "adapter10"), adapter, "adapter1")
    path = adapter / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if becomes or was not in name}
    save_file({name.replace(was, becomes or was): value for name, value in kept.items()}, path)
    with pytest.raises(AdapterError, match=said):
        load_adapter(base, adapter, "adapter2")


def test_an_adapter_of_another_base_s_shape_is_refused(adapter: Path, tiny_model: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: value[:, :3] if "lora_A" in name else value for name, value in load_file(path).items()}, path)
    with pytest.raises(AdapterError, match="does not fit the base model"):
        load_adapter(load_16bit(str(tiny_model)), adapter)


IDS = (
    "http://127.0.0.1:{port}/x",
    "https://127.0.0.1:{port}/x",
    "127.0.0.1:{port}/x",
    "//127.0.0.1:{port}/x",
    "x@127.0.0.1:{port}",
    "localhost:{port}",
    "http:/127.0.0.1",
    "file:///etc/passwd",
    "s3://bucket/x",
    "hf://datasets/a/b",
    "hf:a/b",
    "..",
    "../..",
    "a/..",
    "./../etc",
    "~root/x",
    "a\\b",
    "%2e%2e/%2e%2e",
    "a/b?c=d#e",
    "a\x00b",
    "a\nb",
    "zip://x::http://127.0.0.1:{port}/y.zip",
)


def quietly(work: Callable[..., Any], *args: Any) -> str:
    """What it was refused with; anything but a `DemoError` fails the test, and so does success."""
    with pytest.raises(DemoError) as error:
        work(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_model_or_data_id_makes_a_request_to_anywhere_but_the_hub(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[str] = set()

    def nowhere(host: Any, *_: Any, **__: Any) -> Any:
        asked.add(host.decode() if isinstance(host, bytes) else str(host))
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0)
        port = listener.getsockname()[1]
        for name in (one.format(port=port) for one in IDS):
            quietly(lambda name=name: shape_of(resolve(services.settings, name)))
            quietly(lambda name=name: plan_training(services.settings, TrainConfig(model=name)))
            quietly(find_adapter, services.settings, services.runs, name)
            quietly(lambda name=name: load_splits(TrainConfig(dataset=name)))
            quietly(push_to, services, name)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert asked <= {constants.ENDPOINT.partition("://")[2]}


def push_to(services: Services, repo: str) -> None:
    folder = services.settings.home / "export"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").touch()
    with pytest.raises(ConfigError):
        HuggingFaceHub().push(folder, repo, token="hf_x")
    raise ConfigError("repo", "refused")
