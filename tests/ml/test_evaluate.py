"""What is measured of a reference answer is the answer: not what a chat template writes around it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from qlora_demo.ml.evaluate import answer_span, reference_targets
from qlora_demo.ml.generate import encode, stop_ids
from qlora_demo.ml.variants import Loaded
from qlora_demo.records import ExportRequest
from qlora_demo.services import Services
from qlora_demo.system.halt import Halt
from tests.ml.test_engine import run_with_rows
from tests.ml.test_variants import finished_run, loaded, variants_of

ROW = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "able"}]
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ '<think></think>\n' if m['role'] == 'assistant' }}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)


@pytest.fixture
def adapter(services: Services, tiny_model: Path) -> Loaded:
    """The tiny model in 4 bit with an adapter on."""
    [one] = loaded(variants_of(services), finished_run(services, tiny_model, "qlora"), ["adapter"])
    return one


@pytest.mark.parametrize("content", ["able", "b", " a", '{"a": 1}', "x <|im_end|"])
@pytest.mark.parametrize("template", ["", REASONING])
def test_an_answer_ends_with_what_stops_it_and_begins_after_what_the_template_writes(
    adapter: Loaded, template: str, content: str
) -> None:
    tokenizer: Any = adapter.tokenizer
    tokenizer.chat_template = template or tokenizer.chat_template
    row = [ROW[0], {"role": "assistant", "content": content}]
    ids = encode(tokenizer, [row], answered=True)["input_ids"][0]
    assert tokenizer.decode(ids[answer_span(adapter, row)]) == f"{content}<|im_end|>"
    [alone], [whole] = (list(reference_targets(adapter, [row], whole=how)) for how in (False, True))
    assert torch.equal(alone.ids[alone.answer], whole.ids[whole.answer])
    assert alone.nll == pytest.approx(whole.nll, rel=1e-4)
    assert len(whole.ids) == len(ids) - 1


def test_a_batch_measures_each_row_as_alone(adapter: Loaded) -> None:
    rows = [[ROW[0], {"role": "assistant", "content": text}] for text in ("x", "a much longer answer", "so so")]
    together = list(reference_targets(adapter, rows))
    for row, one in zip(rows, together, strict=True):
        [alone] = reference_targets(adapter, [row])
        assert one.answer == alone.answer
        assert one.nll == pytest.approx(alone.nll, rel=0.02)


def test_an_answer_stops_at_the_tokenizer_s_own_end_where_the_model_s_files_name_another(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    run = run_with_rows(services, model, "qlora")
    [adapter] = loaded(variants_of(services), run, ["adapter"])
    ends = {7, adapter.tokenizer.eos_token_id}
    assert set(adapter.stops) == ends
    *_, last = services.engine().export(ExportRequest(run.id, "merged", None, tmp_path / "merged"), Halt())
    assert set(GenerationConfig.from_pretrained(last.result["path"]).eos_token_id) == ends


def test_another_adapter_s_own_end_on_the_same_weights_ends_no_answer_of_this_one(
    services: Services, tiny_model: Path, tmp_path: Path
) -> None:
    run = finished_run(services, tiny_model, "qlora")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(9)
    tokenizer.save_pretrained(shutil.copytree(run.adapter, tmp_path / "other"))
    names = ["adapter", "base", f"adapter@{tmp_path / 'other'}"]
    mine, base, theirs = loaded(variants_of(services), run, names)
    assert mine.model is theirs.model
    for one, ends in ((mine, False), (theirs, True), (base, False), (mine, False)):
        with one.activate():
            assert (9 in one.stops, 9 in stop_ids(one.model)) == (ends, ends)
