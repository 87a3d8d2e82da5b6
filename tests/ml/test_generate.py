"""The one decode loop answers what plain generate() answers, in turns as alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_demo.config import GenerationSettings
from qlora_demo.errors import ConfigError, WorkError
from qlora_demo.ml import load
from qlora_demo.ml.generate import add_pass, complete, encode, stream
from qlora_demo.records import AnswerTiming, Message

ASKED: list[Message] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello, wörld"}]
SETTINGS = GenerationSettings(max_new_tokens=24)


def _plain(model: Any, tokenizer: Any, conversation: list[Message]) -> list[int]:
    inputs = encode(tokenizer, [conversation])
    with torch.inference_mode():
        out = model.generate(**inputs, max_new_tokens=SETTINGS.max_new_tokens, do_sample=False)
    return [int(token) for token in out[0, inputs["input_ids"].shape[1] :]]


def _ids(model: Any, tokenizer: Any, settings: GenerationSettings = SETTINGS) -> list[int]:
    *_, last = stream(model, tokenizer, ASKED, settings)
    return list(last.token_ids)


def test_greedy_tokens_equal_plain_generate_on_a_16_bit_model(tiny_model: Path, tokenizer: Any) -> None:
    model = load.load_16bit(str(tiny_model))
    assert _ids(model, tokenizer) == _plain(model, tokenizer, ASKED)


def test_greedy_tokens_equal_plain_generate_on_a_4_bit_model_with_adapter(adapted: Any, tokenizer: Any) -> None:
    assert _ids(adapted, tokenizer) == _plain(adapted, tokenizer, ASKED)


def test_columns_stepped_in_turn_over_shared_weights_answer_as_alone(adapted: Any, tokenizer: Any) -> None:
    with adapted.disable_adapter():
        off_alone = _plain(adapted, tokenizer, ASKED)
    on_alone = _plain(adapted, tokenizer, ASKED)
    on = stream(adapted, tokenizer, ASKED, SETTINGS)
    off = stream(adapted, tokenizer, ASKED, SETTINGS, adapted.disable_adapter)
    last_on = last_off = None
    for last_on, last_off in zip(on, off, strict=False):  # noqa: B007 - the last ones are compared
        pass
    assert last_on is not None and last_off is not None
    shortest = min(len(last_on.token_ids), len(last_off.token_ids))
    assert on_alone != off_alone
    assert list(last_on.token_ids)[:shortest] == on_alone[:shortest]
    assert list(last_off.token_ids)[:shortest] == off_alone[:shortest]
    assert last_on.fingerprint != last_off.fingerprint


def test_chunks_add_up_to_the_decoded_text(adapted: Any, tokenizer: Any) -> None:
    chunks = list(stream(adapted, tokenizer, ASKED, SETTINGS))
    text = "".join(chunk.text for chunk in chunks)
    assert text == tokenizer.decode(chunks[-1].token_ids, skip_special_tokens=True)


def test_an_answer_that_fills_the_limit_ends_by_length(adapted: Any, tokenizer: Any) -> None:
    chunks = list(stream(adapted, tokenizer, ASKED, GenerationSettings(max_new_tokens=3)))
    assert [chunk.finish for chunk in chunks] == [None, None, "length"]


def test_an_answer_ends_at_the_stop_token(tiny_model: Path, tokenizer: Any) -> None:
    model = load.load_16bit(str(tiny_model))
    free = _ids(model, tokenizer)
    model.generation_config.eos_token_id = [free[4]]
    *_, last = stream(model, tokenizer, ASKED, SETTINGS)
    assert last.finish == "stop"
    assert list(last.token_ids) == free[: free.index(free[4]) + 1]


def test_one_seed_gives_one_draw_and_another_seed_another(adapted: Any, tokenizer: Any) -> None:
    first = _ids(adapted, tokenizer, GenerationSettings(max_new_tokens=24, temperature=1.5, seed=1))
    again = _ids(adapted, tokenizer, GenerationSettings(max_new_tokens=24, temperature=1.5, seed=1))
    other = _ids(adapted, tokenizer, GenerationSettings(max_new_tokens=24, temperature=1.5, seed=2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_model_s_own_files_say_of_sampling_changes_no_answer(
    tiny_model: Path, tokenizer: Any, temperature: float
) -> None:
    model: Any = load.load_16bit(str(tiny_model))
    settings = GenerationSettings(max_new_tokens=24, temperature=temperature, top_p=0.9)
    free = _ids(model, tokenizer, settings)
    model.generation_config.update(repetition_penalty=1.5, no_repeat_ngram_size=1, min_p=0.9, top_k=1, num_beams=2)
    assert _ids(model, tokenizer, settings) == free


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("weight", ["nan", "inf"])
def test_no_token_is_taken_by_scores_that_are_no_numbers(
    tiny_model: Path, tokenizer: Any, weight: str, temperature: float
) -> None:
    model = load.load_16bit(str(tiny_model))
    with torch.no_grad():
        model.get_output_embeddings().weight[3] = float(weight)
    with pytest.raises(WorkError, match="scores are no numbers"):
        _ids(model, tokenizer, GenerationSettings(max_new_tokens=2, temperature=temperature, top_p=0.9))


def test_a_batch_answers_each_row_as_alone(tiny_model: Path, tokenizer: Any) -> None:
    model = load.load_16bit(str(tiny_model)).float()
    rows = [[{"role": "user", "content": text}] for text in ("hi", "a longer question", "x")]
    together = complete(model, tokenizer, rows, SETTINGS)
    assert together == [complete(model, tokenizer, [row], SETTINGS)[0] for row in rows]


def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(adapted: Any, tokenizer: Any) -> None:
    long: list[Message] = [{"role": "user", "content": "x" * 300}]
    with pytest.raises(ConfigError, match=r"prompt: 3\d\d tokens .* context of 256"):
        next(stream(adapted, tokenizer, long, SETTINGS))


def test_timing_adds_up_from_the_chunks(adapted: Any, tokenizer: Any) -> None:
    timing = AnswerTiming()
    chunks = list(stream(adapted, tokenizer, ASKED, SETTINGS))
    for chunk in chunks:
        timing = add_pass(timing, chunk)
    assert timing.ttft_seconds == chunks[0].seconds
    assert timing.total_seconds == pytest.approx(sum(chunk.seconds for chunk in chunks))
    assert timing.tokens_per_second == pytest.approx((len(chunks) - 1) / sum(c.seconds for c in chunks[1:]))
