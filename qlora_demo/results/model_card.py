"""The README.md of an exported folder: what it is, how to load it, and the figures that were measured, with how.

Front matter that names a base model or a data set by anything but a hub id is refused by the hub, so local folders and
files stand in the text only.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..catalog import BUNDLED_DATASETS, BUNDLED_MODELS
from ..hub import is_repo_id
from ..units import memory
from . import tables
from .tables import Table, markdown

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank, besides 1."""

_DATA_FILES = {".jsonl", ".json", ".csv", ".tsv", ".parquet"}
_PYTHON_4_BIT = """\
quantized = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="{kind}",
    bnb_4bit_use_double_quant={double},
    bnb_4bit_compute_dtype=torch.bfloat16,
)
"""
_PYTHON_8_BIT = "quantized = BitsAndBytesConfig(load_in_8bit=True)\n"
_MEASURED = (
    "Loss (nats), perplexity and token accuracy are over the tokens of the reference answers, the one that stops each "
    "among them, each given the ones before it; exact match, with its 95% Wilson score interval, valid "
    "JSON and ROUGE-L are of greedy answers, made in batches: answered singly a row may differ where two tokens are "
    "nearly as likely."
)
_COMPARED = (
    "Each merge against the base with the adapter on it, on whole held-out rows, prompt and reference answer: KL "
    "divergence of the next-token distributions, over all tokens and over the reference answers' only; how often both "
    "prefer the same token; and, where given, how the answers' loss and the greedy answers compare."
)
_UNNAMED = ("", "")
"""The head of a table of names and values."""
_GENERATE = """\
tokenizer = AutoTokenizer.from_pretrained(folder)
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs.to(model.device), max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class CardFacts:
    """What is known of an exported folder; what is missing or None is not printed.

    ``model`` is the base as `from_pretrained` takes it; ``config`` holds the run's fields, at least ``r`` and
    ``method``; ``summary`` the run's final figures; ``evaluation`` figures by split and variant under "splits";
    ``fidelity`` figures by merge under "merges"; ``onto`` is empty for an adapter.
    """

    run: str
    model: str
    dataset: str
    config: dict[str, Any]
    summary: dict[str, Any]
    versions: dict[str, str]
    evaluation: dict[str, Any] | None
    fidelity: dict[str, Any] | None
    precision: Literal["adapter", "16bit", "nf4"]
    onto: Literal["original", "dequantized", ""]


def adapter_card(facts: CardFacts) -> str:
    """The card of a LoRA adapter."""
    config = facts.config
    what = (
        f"A LoRA adapter of rank {config['r']} for {_code(facts.model)}, trained by {_method(config)} on "
        f"{_code(facts.dataset)} (run {_code(facts.run)})."
    )
    if config["method"] != "lora" and not config.get("use_dora"):
        what += (
            f" It learned to correct the {_stored(config)} base, which is what the Python lines below load; vLLM as "
            "started below puts it on the 16-bit base, so answers may differ."
        )
    if config["method"] == "qlora" and config.get("use_dora"):
        what += (
            " Load it on a GPU, or the merged model instead: on a processor with AVX512-BF16, bitsandbytes repacks the "
            "base at its first pass, and PEFT then takes DoRA's norms from it wrongly."
        )
    return _card(facts, "peft", f"# LoRA adapter for {_code(facts.model)}", what)


def merged_card(facts: CardFacts) -> str:
    """The card of a base model with the adapter merged into it."""
    what = (
        f"{_code(facts.model)} with a LoRA adapter of rank {facts.config['r']}, trained by "
        f"{_method(facts.config)} on {_code(facts.dataset)} (run {_code(facts.run)}), merged in 16 bit onto "
        f"{_onto(facts)}"
    )
    after = ", then quantized to 4-bit NF4." if facts.precision == "nf4" else "."
    return _card(facts, "transformers", f"# {_code(facts.model)}, tuned and merged", what + after)


def loading_lines(facts: CardFacts, folder: str, base: str) -> dict[str, str]:
    """What loads the folder, or a repository that holds the same: ``vllm`` for a shell, ``transformers`` for Python.
    ``base``: what `from_pretrained` takes for an adapter's base."""
    return {"vllm": _vllm(facts, folder, base), "transformers": _python(facts, folder, base)}


def _vllm(facts: CardFacts, folder: str, base: str) -> str:
    if facts.precision == "16bit":
        return f"vllm serve {shlex.quote(folder)}"
    if facts.precision == "nf4":
        return f"vllm serve {shlex.quote(folder)} --quantization bitsandbytes"
    if facts.config.get("use_dora"):
        return "# vLLM takes no DoRA adapter: export the merged model and serve that"
    rank = next(rank for rank in VLLM_RANKS if rank >= _saved_rank(facts.config))
    module = shlex.quote(f"{facts.run}={folder}")
    return f"vllm serve {shlex.quote(base)} --enable-lora --lora-modules {module} --max-lora-rank {rank}"


def _python(facts: CardFacts, folder: str, base: str) -> str:
    if facts.precision != "adapter":
        return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder!r}
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto")
{_GENERATE}"""
    config = _quantizing(facts.config)
    quantize = "quantization_config=quantized, " if config else ""
    names = "AutoModelForCausalLM, AutoTokenizer" + (", BitsAndBytesConfig" if config else "")
    return f"""\
import torch
from peft import PeftModel
from transformers import {names}

folder = {folder!r}
{config}base = AutoModelForCausalLM.from_pretrained({base!r}, {quantize}dtype=torch.bfloat16, device_map="auto")
model = PeftModel.from_pretrained(base, folder)
{_GENERATE}"""


def _quantizing(config: Mapping[str, Any]) -> str:
    """Python that says how the base of an adapter was stored; empty where it was in 16 bit."""
    if config["method"] != "qlora":
        return _PYTHON_8_BIT if config["method"] == "lora-8bit" else ""
    double = config.get("bnb_4bit_use_double_quant", True)
    return _PYTHON_4_BIT.format(kind=config.get("bnb_4bit_quant_type", "nf4"), double=double)


def _saved_rank(config: Mapping[str, Any]) -> int:
    """The rank of the adapter as it is saved: one that began by changing the base holds its start as well."""
    doubled = config.get("init_lora_weights") in ("pissa", "olora")
    return int(config["r"]) * (2 if doubled else 1)


def _method(config: Mapping[str, Any]) -> str:
    return f"{'QLoRA' if config['method'] == 'qlora' else 'LoRA'} (on a base in {_stored(config)})"


def _stored(config: Mapping[str, Any]) -> str:
    """How the base was stored while the adapter was trained."""
    kinds = {"lora": "16 bit", "lora-8bit": "8 bit"}
    return kinds.get(config["method"]) or f"4-bit {config.get('bnb_4bit_quant_type', 'nf4').upper()}"


def _card(facts: CardFacts, library: str, title: str, what: str) -> str:
    parts = [
        _front_matter(facts, library) + title,
        what,
        *_loading(facts),
        *_training(facts),
        *_evaluation(facts.evaluation),
        *_fidelity(facts.fidelity),
        *_versions(facts.versions),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts, library: str) -> str:
    values: dict[str, Any] = {
        "base_model": facts.model if _is_on_hub(facts.model) else None,
        "library_name": library,
        "pipeline_tag": "text-generation",
        "datasets": [facts.dataset] if _is_on_hub(facts.dataset) else None,
        "tags": list(dict.fromkeys(["lora", facts.config["method"]])),
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---", "", ""])


def _is_on_hub(name: str) -> bool:
    """Whether a name is a hub id: it is no name of our catalog, and nothing here goes by it."""
    ours = name in BUNDLED_MODELS or name in BUNDLED_DATASETS
    return is_repo_id(name) and not ours and Path(name).suffix not in _DATA_FILES and not Path(name).exists()


def _loading(facts: CardFacts) -> list[str]:
    bundled = facts.model in BUNDLED_MODELS
    lines = loading_lines(facts, "FOLDER", "BASE" if bundled else facts.model)
    where = "Replace FOLDER with this folder's path, or with the name of the hub repository that holds it."
    if facts.precision == "adapter":
        if bundled:
            where += (
                f" {_code(facts.model)} is not on a hub: replace BASE with the folder that "
                "`python -m qlora_demo fetch` names."
            )
        where += f" Ask vLLM for the model {_code(facts.run)}; under the base's name it answers without the adapter."
    return ["## Loading", where, _fenced("bash", lines["vllm"]), _fenced("python", lines["transformers"])]


def _training(facts: CardFacts) -> list[str]:
    summary, settings = facts.summary, facts.config
    rows = {
        "Steps": _figure(summary, "steps", "d"),
        "Training loss, mean over all steps": _figure(summary, "train_loss", ".4f"),
        _heldout_name(settings, summary): _figure(summary, "eval_loss", ".4f"),
        "Tokens per second in the steps, without padding": _figure(summary, "tokens_per_second", ",.0f"),
        f"Peak memory{_on(facts.versions)}": _memory(summary.get("peak_memory_bytes")),
        "Trained parameters": _parameters(summary),
        "Seconds from start to end, loading included": _figure(summary, "runtime_seconds", ",.0f"),
    }
    measured = tuple((name, value) for name, value in rows.items() if value)
    chosen = tuple((_cell(name), _cell(str(value))) for name, value in settings.items())
    figures = [markdown(Table(_UNNAMED, measured))] if measured else []
    return ["## Training", *figures, "Settings:", markdown(Table(_UNNAMED, chosen))]


def _heldout_name(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    rows = f" (at most {config['eval_rows']} rows of split `test`)" if "eval_rows" in config else ""
    when = f" at step {summary['eval_step']:d}" if summary.get("eval_step") is not None else ", last measured"
    return f"Held-out loss{when}{rows}"


def _on(versions: Mapping[str, str]) -> str:
    return f" on {_cell(versions['device'])}" if "device" in versions else ""


def _memory(count: int | None) -> str:
    return "" if count is None else memory(count)


def _parameters(summary: Mapping[str, Any]) -> str:
    trained, total = summary.get("trainable_parameters"), summary.get("all_parameters")
    if not trained or not total:
        return ""
    return f"{trained:,} of {total:,} ({trained / total:.2%})"


def _evaluation(evaluation: Mapping[str, Any] | None) -> list[str]:
    found = tables.evaluation(evaluation)
    if not found.rows:
        return []
    names = 3 if "weights" in found.head else 2
    named = ((*map(_cell, row[:names]), *row[names:]) for row in found.rows)
    remarks = [_cell(told)] if (told := tables.remarks(evaluation)) else []
    return ["## Evaluation", _MEASURED, *remarks, markdown(Table(found.head, tuple(named)))]


def _fidelity(fidelity: Mapping[str, Any] | None) -> list[str]:
    found = tables.fidelity(fidelity)
    if not found.rows:
        return []
    named = Table((found.head[0], *map(_cell, found.head[1:])), found.rows)
    return ["## How close a merge is to what was trained", _COMPARED, markdown(named)]


def _versions(versions: Mapping[str, str]) -> list[str]:
    lines = [f"- {_code(name)}: {_code(value)}" for name, value in versions.items()]
    return ["## Made with", "\n".join(lines)] if lines else []


def _figure(values: Mapping[str, Any], key: str, spec: str) -> str:
    value = values.get(key)
    return "" if value is None else format(value, spec)


def _onto(facts: CardFacts) -> str:
    return (
        "the original base"
        if facts.onto == "original"
        else f"the base as stored in {_stored(facts.config)}, dequantized"
    )


def _code(text: str) -> str:
    """A person's words as a code span: nothing in it is markup, also where it holds backticks or line ends."""
    line = " ".join(text.split())
    fence = "`" * (1 + _longest_run(line))
    return f"{fence} {line} {fence}" if line.startswith("`") or line.endswith("`") else f"{fence}{line}{fence}"


def _cell(text: str) -> str:
    return _code(text).replace("|", "\\|")


def _fenced(language: str, text: str) -> str:
    fence = "`" * max(3, 1 + _longest_run(text))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
