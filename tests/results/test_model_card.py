"""The card of an exported folder: front matter a hub takes, lines that really load it, and only measured figures."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qlora_demo.catalog import SMOLLM2, TICKETS
from qlora_demo.results import tables
from qlora_demo.results.model_card import CardFacts, adapter_card, loading_lines, merged_card

FACTS = CardFacts(
    run="20261124-060000-qlora-ab12",
    model="someone/small-base",
    dataset="someone/rows",
    config={"model": "someone/small-base", "r": 24, "method": "qlora", "eval_rows": 32},
    summary={
        "steps": 110,
        "train_loss": 0.51234,
        "eval_loss": 0.41,
        "eval_step": 55,
        "tokens_per_second": 1234.4,
        "peak_memory_bytes": 3 << 30,
        "trainable_parameters": 4_884_480,
        "all_parameters": 139_399_488,
        "runtime_seconds": 240.3,
    },
    versions={"python": "3.11.7", "device": "NVIDIA H200"},
    evaluation={
        "splits": {
            "test": {
                "base": {"rows": 200, "loss": 1.25, "perplexity": 3.49, "token_accuracy": 0.7, "exact_match": 0.0},
                "adapter": {"rows": 199, "loss": 0.25, "perplexity": 1.28, "token_accuracy": 0.97, "exact_match": 0.9},
            },
            "hard": {"adapter": {"rows": 50, "loss": 0.5, "rouge_l": 0.75}},
        }
    },
    fidelity={
        "merges": {
            "original": {"rows": 25, "tokens": 800, "kl_mean": 0.0123, "kl_worst": 2.5, "top1_agreement": 0.991},
            "dequantized": {"rows": 25, "tokens": 800, "kl_mean": 0.0001, "kl_worst": 0.2, "top1_agreement": 0.999},
        },
    },
    precision="adapter",
    onto="",
)
MERGED = replace(FACTS, precision="16bit", onto="dequantized")
NF4 = replace(FACTS, precision="nf4", onto="original")
BARE = replace(FACTS, config={"r": 8, "method": "lora"}, summary={}, versions={}, evaluation=None, fidelity=None)


def _front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = ModelCard(card).data.to_dict()  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize(
    ("card", "library", "method"),
    [
        (adapter_card(FACTS), "peft", ["lora", "qlora"]),
        (merged_card(MERGED), "transformers", ["lora", "qlora"]),
        (merged_card(replace(BARE, precision="nf4", onto="original")), "transformers", ["lora"]),
    ],
)
def test_the_front_matter_is_what_a_hub_reads(card: str, library: str, method: list[str]) -> None:
    assert _front_matter(card) == {
        "base_model": "someone/small-base",
        "library_name": library,
        "pipeline_tag": "text-generation",
        "datasets": ["someone/rows"],
        "tags": method,
    }


def test_a_name_that_yaml_would_read_as_something_else_stays_a_name() -> None:
    found = _front_matter(adapter_card(replace(FACTS, model="1234", dataset="null")))
    assert (found["base_model"], found["datasets"]) == ("1234", ["null"])


@pytest.mark.parametrize("model", ["/home/ada/model", "./model", "a/b/c", 'x"\nevil: 1'])
@pytest.mark.parametrize("dataset", ["/data/rows", "rows.jsonl", "data/rows.csv", "a: b\n---"])
def test_what_is_on_no_hub_is_not_in_the_front_matter_but_in_the_text(model: str, dataset: str) -> None:
    card = adapter_card(replace(FACTS, model=model, dataset=dataset))
    assert set(_front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert f"`{' '.join(model.split())}`, trained by" in card
    assert f"on `{' '.join(dataset.split())}` (run" in card


def test_the_bundled_model_and_task_are_told_of_as_what_is_on_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = adapter_card(replace(FACTS, model=SMOLLM2.name, dataset=TICKETS.name))
    assert set(_front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "from_pretrained('BASE', " in card and "vllm serve BASE " in card
    assert "replace BASE with the folder that `python -m qlora_demo fetch` names" in card
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "small").mkdir(parents=True)
    card = adapter_card(replace(FACTS, model="models/small", dataset="rows.tsv"))
    assert set(_front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert "from_pretrained('models/small', " in card


def _rows(card: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in card.splitlines() if line.startswith("|")]


def test_every_figure_says_how_it_was_measured() -> None:
    assert [row for row in _rows(adapter_card(FACTS)) if not set(row) <= {"", "---"}] == [
        ["Steps", "110"],
        ["Training loss, mean over all steps", "0.5123"],
        ["Held-out loss at step 55 (at most 32 rows of split `test`)", "0.4100"],
        ["Tokens per second in the steps, without padding", "1,234"],
        ["Peak memory on `NVIDIA H200`", "3.0 GiB"],
        ["Trained parameters", "4,884,480 of 139,399,488 (3.50%)"],
        ["Seconds from start to end, loading included", "240"],
        ["`model`", "`someone/small-base`"],
        ["`r`", "`24`"],
        ["`method`", "`qlora`"],
        ["`eval_rows`", "`32`"],
        [*tables.evaluation(FACTS.evaluation).head],
        ["`test`", "`base`", "200", "1.25", "3.49", "70.0%", "0.0%", "0.0% to 1.9%", "–"],
        ["`test`", "`adapter`", "199", "0.25", "1.28", "97.0%", "90.0%", "85.0% to 93.4%", "–"],
        ["`hard`", "`adapter`", "50", "0.5", "–", "–", "–", "–", "0.75"],
        ["against the adapter model", "`original`", "`dequantized`"],
        ["mean KL divergence (nats)", "0.012", "0.0001"],
        ["worst KL divergence (nats)", "2.5", "0.2"],
        ["same most likely token", "99.1%", "99.9%"],
        ["held-out rows", "25", "25"],
        ["tokens", "800", "800"],
    ]


def test_what_was_not_measured_is_not_printed() -> None:
    card = adapter_card(BARE)
    assert [row for row in _rows(card) if not set(row) <= {"", "---"}] == [["`r`", "`8`"], ["`method`", "`lora`"]]
    assert re.findall("^## (.+)$", card, re.MULTILINE) == ["Loading", "Training"]
    some = adapter_card(replace(BARE, summary={"train_loss": 0.5, "eval_loss": None, "trainable_parameters": 10}))
    assert "| Training loss, mean over all steps | 0.5000 |" in some
    assert [word for word in ("None", "Held-out", "Trained parameters") if word in some] == []


def test_a_merged_card_says_onto_what_and_in_which_precision() -> None:
    assert "merged in 16 bit onto the base as stored in 4-bit NF4, dequantized." in merged_card(MERGED)
    assert "merged in 16 bit onto the original base, then quantized to 4-bit NF4." in merged_card(NF4)


def test_an_adapter_s_card_says_where_the_two_ways_of_loading_differ() -> None:
    assert "puts it on the 16-bit base, so answers may differ" in adapter_card(FACTS)
    assert "answers may differ" not in adapter_card(BARE)
    assert "Ask vLLM for the model `20261124-060000-qlora-ab12`" in adapter_card(FACTS)
    assert "Ask vLLM" not in merged_card(MERGED)


@pytest.mark.parametrize("facts", [FACTS, MERGED, NF4], ids=["adapter", "16bit", "nf4"])
def test_the_card_holds_the_loading_lines_that_the_page_shows(facts: CardFacts) -> None:
    card = adapter_card(facts) if facts.precision == "adapter" else merged_card(facts)
    blocks = [(token.info, token.content) for token in MarkdownIt().parse(card) if token.type == "fence"]
    lines = loading_lines(facts, "FOLDER", facts.model)
    assert blocks == [("bash", lines["vllm"] + "\n"), ("python", lines["transformers"])]


@pytest.mark.parametrize("folder", ["/out/a b", "it's", "$(rm -rf ~)", "a;b`c`", "-x y", 'q"q'])
def test_a_shell_hands_vllm_the_folder_as_it_is(folder: str) -> None:
    assert shlex.split(loading_lines(MERGED, folder, "b")["vllm"]) == ["vllm", "serve", folder]
    assert shlex.split(loading_lines(NF4, folder, "b")["vllm"]) == [
        "vllm",
        "serve",
        folder,
        "--quantization",
        "bitsandbytes",
    ]
    assert shlex.split(loading_lines(FACTS, folder, folder)["vllm"]) == [
        *("vllm", "serve", folder, "--enable-lora"),
        *("--lora-modules", f"20261124-060000-qlora-ab12={folder}"),
        *("--max-lora-rank", "32"),
    ]


@pytest.mark.parametrize(
    ("r", "rank"),
    [(1, 8), (8, 8), (9, 16), (16, 16), (33, 64), (65, 128), (129, 256), (256, 256), (257, 320), (512, 512)],
)
def test_the_rank_is_the_smallest_that_vllm_takes(r: int, rank: int) -> None:
    assert loading_lines(replace(FACTS, config={"r": r, "method": "lora"}), "f", "b")["vllm"].endswith(
        f"--max-lora-rank {rank}"
    )


@given(st.text(), st.sampled_from([FACTS, BARE, MERGED, NF4]))
def test_python_compiles_and_names_the_folder_as_it_is(folder: str, facts: CardFacts) -> None:
    code = compile(loading_lines(facts, folder, folder)["transformers"], "card", "exec")
    assert folder in code.co_consts


@example("a\n```\n# b")
@given(st.text(alphabet="`|*<>_#\\\n\r &a", min_size=1).filter(str.strip))
def test_nothing_a_person_wrote_is_markup(text: str) -> None:
    facts = replace(
        FACTS,
        run=text,
        model=text,
        dataset=text,
        config=FACTS.config | {"model": text},
        versions={"device": text},
        evaluation={"splits": {text: {text: {"rows": 1}}}},
    )
    html = MarkdownIt().enable("table").render(adapter_card(facts))
    plain = MarkdownIt().enable("table").render(adapter_card(_plain(facts)))
    assert _skeleton(html) == _skeleton(plain)


def _plain(facts: CardFacts) -> CardFacts:
    return replace(
        facts,
        run="x",
        model="/x",
        dataset="/x",
        config=facts.config | {"model": "x"},
        versions={"device": "x"},
        evaluation={"splits": {"x": {"x": {"rows": 1}}}},
    )


def _skeleton(html: str) -> list[str]:
    """The tags after the front matter, which to a Markdown reader is a rule and a heading."""
    return re.findall("<[^>]*>", html[html.index("<h1>") :])


FP4 = replace(
    BARE, config={"r": 4, "method": "qlora", "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
)
INT8 = replace(BARE, config={"r": 4, "method": "lora-8bit"})


@pytest.mark.parametrize(
    ("facts", "loaded"),
    [
        (FACTS, "PeftModelForCausalLM Linear4bit bfloat16 nf4 True"),
        (FP4, "PeftModelForCausalLM Linear4bit bfloat16 fp4 False"),
        (INT8, "PeftModelForCausalLM Linear8bitLt int8"),
        (BARE, "PeftModelForCausalLM Linear bfloat16"),
        (MERGED, "LlamaForCausalLM Linear bfloat16"),
        (NF4, "LlamaForCausalLM Linear4bit bfloat16 nf4 True"),
    ],
    ids=["adapter on NF4", "adapter on FP4", "adapter on 8 bit", "adapter on 16 bit", "16bit", "nf4"],
)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_the_python_lines_really_load_and_answer(
    tiny_model: Path, tmp_path: Path, facts: CardFacts, loaded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _export(tiny_model, tmp_path / "it's out", facts)
    code = loading_lines(facts, str(folder), str(tiny_model))["transformers"]
    made: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), made)
    assert capsys.readouterr().out.strip()
    assert _look(made["model"]) == loaded


def _look(model: Any) -> str:
    """The classes of model and layer, what it computes or stores in, and how it is quantized."""
    layer = next(m for n, m in model.named_modules() if n.endswith("q_proj"))
    layer = getattr(layer, "base_layer", layer)
    quantized: Any = getattr(model.config, "quantization_config", None)
    four_bit = quantized is not None and quantized.load_in_4bit
    how = [quantized.bnb_4bit_quant_type, quantized.bnb_4bit_use_double_quant] if four_bit else []
    dtype = layer.compute_dtype if four_bit else layer.weight.dtype
    return " ".join(map(str, [type(model).__name__, type(layer).__name__, str(dtype).removeprefix("torch."), *how]))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"method": "qlora"}, "QLoRA (on a base in 4-bit NF4)"),
        ({"method": "qlora", "bnb_4bit_quant_type": "fp4"}, "QLoRA (on a base in 4-bit FP4)"),
        ({"method": "lora"}, "LoRA (on a base in 16 bit)"),
        ({"method": "lora-8bit"}, "LoRA (on a base in 8 bit)"),
    ],
)
def test_a_card_says_how_the_base_was_stored(config: dict[str, Any], words: str) -> None:
    facts = replace(BARE, config={"r": 8, **config})
    assert f"trained by {words}" in adapter_card(facts)
    assert f"trained by {words}" in merged_card(replace(facts, precision="16bit", onto="original"))


def test_vllm_is_told_the_rank_that_is_saved_and_is_given_no_dora_adapter() -> None:
    doubled = replace(BARE, config={"r": 16, "method": "lora", "init_lora_weights": "pissa"})
    assert loading_lines(doubled, "f", "b")["vllm"].endswith("--max-lora-rank 32")
    dora = replace(BARE, config={"r": 16, "method": "qlora", "use_dora": True})
    assert loading_lines(dora, "f", "b")["vllm"].startswith("# vLLM takes no DoRA adapter")
    assert "vLLM as started below" not in adapter_card(dora)


@pytest.mark.parametrize(("method", "use_dora"), [("qlora", True), ("qlora", False), ("lora", True)])
def test_where_the_libraries_take_wrong_norms_is_told_with_the_adapters_that_have_them(
    method: str, use_dora: bool
) -> None:
    told = adapter_card(replace(BARE, config={"r": 16, "method": method, "use_dora": use_dora}))
    assert ("on a processor with AVX512-BF16" in told) == (method == "qlora" and use_dora)


def _export(base: Path, folder: Path, facts: CardFacts) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from tests.tiny import save_adapter

    if facts.precision == "adapter":
        return save_adapter(base, folder)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    how = {"quantization_config": nf4} if facts.precision == "nf4" else {}
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **how).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_figures_of_an_adapter_that_is_no_longer_there_are_said_to_be() -> None:
    assert FACTS.evaluation
    known = replace(FACTS, evaluation=FACTS.evaluation | {"outdated": ["adapter@another"]})
    assert "Of the adapter before its run was resumed: adapter@another." in adapter_card(known)
