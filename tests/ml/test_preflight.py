"""What is wrong with a data set is told before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import ConfigError, DataError
from qlora_demo.ml.data import heldout_places, load_splits
from qlora_demo.ml.generate import encode
from qlora_demo.ml.load import load_tokenizer
from qlora_demo.ml.preflight import preflight
from qlora_demo.ml.trainer import build_trainer
from qlora_demo.services import Services
from qlora_demo.settings import Settings
from qlora_demo.system.halt import Halt
from qlora_demo.ui.render_training import preflight as preflight_html


def pair(question: str, answer: str) -> dict[str, Any]:
    return {"prompt": question, "completion": answer}


GOOD = [pair(f"question {n}", f"answer {n}") for n in range(20)]


@pytest.fixture
def check(home: Path, tiny_model: Path, tmp_path: Path) -> Any:
    def run(rows: Iterable[Any], **values: Any) -> dict[str, Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
        chosen = {"model": str(tiny_model), "dataset": str(path), "max_length": 64, "eval_rows": 4, **values}
        config = TrainConfig(**chosen)
        *_, last = preflight(config, Settings(home), Halt())
        return last.result

    return run


def problems(result: dict[str, Any]) -> dict[str, int]:
    return {problem["kind"]: problem["count"] for problem in result["problems"]}


def test_good_rows_have_counts_lengths_and_no_problem(check: Any) -> None:
    found = check(GOOD)
    assert (found["rows"], found["problems"], found["fatal"]) == (20, [], "")
    assert found["mapping"] == {"prompt": "prompt", "completion": "completion"}
    assert sum(count for _, count in found["lengths"]["histogram"]) == 20
    assert 0 < found["lengths"]["median"] <= found["lengths"]["p95"] <= found["lengths"]["longest"] <= 64


def test_one_row_in_twenty_is_longer_than_95_percent(check: Any) -> None:
    lengths = check([*GOOD[:19], pair("a question that is longer", "a")])["lengths"]
    assert lengths["p95"] < lengths["longest"]


def test_only_the_answer_and_its_end_are_trained(check: Any) -> None:
    rendered = check(GOOD)["rendered"][0]
    assert [trained for _, trained in rendered] == [False, True]
    assert "question 0" in rendered[0][0] and rendered[0][0].endswith("<|im_start|>assistant\n")
    assert rendered[1][0].startswith("answer 0<|im_end|>")
    assert all(trained for _, trained in check(GOOD, loss_on="all")["rendered"][0])


@pytest.mark.parametrize(
    ("bad", "kind", "fatal"),
    [
        (pair("q", ""), "unusable", True),
        ({"prompt": "q"}, "unusable", True),
        ("{half", "unusable", True),
        ({"messages": [{"role": "robot", "content": "x"}]}, "unusable", True),
        (pair("q", "word " * 80), "cut", False),
        (pair("word " * 80, "a"), "dropped", False),
        (GOOD[3], "duplicate", False),
        (pair("caf\ufffd", "a"), "encoding", False),
        ({"messages": [{"role": "assistant", "content": "first"}]}, "order", False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_problem_is_told_with_its_row(check: Any, bad: Any, kind: str, fatal: bool) -> None:
    found = check([*GOOD, bad])
    assert problems(found)[kind] == 1
    (problem,) = (one for one in found["problems"] if one["kind"] == kind)
    assert "line 21" in problem["rows"][0]
    assert (problem["fatal"], "line 21" in found["fatal"]) == (fatal, fatal)


def test_only_the_first_rows_of_a_problem_are_shown_and_all_are_counted(check: Any) -> None:
    (problem,) = check([*GOOD, *[pair("q", "")] * 50])["problems"]
    [row] = problem["rows"]
    assert problem["count"] == 50 and row.count("has no answer") == 1
    assert row.startswith("line 21") and row.endswith("(also line 22, line 23, line 24, line 25 and 45 more)")


def test_columns_that_nobody_knows_come_with_how_to_say_what_they_are(check: Any) -> None:
    rows = [{"ask": f"question {n}", "reply": f"answer {n}"} for n in range(20)]
    found = check(rows)
    assert "or say in the field columns what they are, like prompt=ask, completion=reply (cannot" in found["fatal"]
    assert len(found["problems"][0]["rows"]) == 1
    assert (found["rows"], sum(count for _, count in found["lengths"]["histogram"])) == (0, 0)
    assert "<svg" not in preflight_html(found)
    mapped = check(rows, columns="prompt=ask, completion=reply")
    assert mapped["rows"] == 20 and "<svg" in preflight_html(mapped)


def test_a_copy_of_a_held_out_row_is_told_and_not_trained_on(check: Any, tmp_path: Path) -> None:
    found = check([row for row in GOOD for _ in range(2)])
    splits = load_splits(TrainConfig(dataset=str(tmp_path / "rows.jsonl")))
    (held,) = splits.heldout.values()
    assert problems(found) == {"leak": len(held), "duplicate": 20} and not found["fatal"]
    assert [row for row in splits.train if row in held] == []
    assert len(splits.train) == 40 - 2 * len(held)


def test_copies_of_one_row_are_fatal(check: Any, tmp_path: Path) -> None:
    assert (
        "holds 5 usable rows, of which 0 are left to train on; give at least 2 that differ"
        in (check(GOOD[:1] * 5)["fatal"])
    )
    with pytest.raises(DataError, match="holds only copies of what is held out"):
        load_splits(TrainConfig(dataset=str(tmp_path / "rows.jsonl")))


def test_nothing_left_to_train_is_fatal(check: Any) -> None:
    found = check([pair(f"{number} " + "word " * 80, "a") for number in range(5)])
    assert "is dropped" in found["fatal"]


LONG = pair("word " * 80, "a")
DROPPED = "is dropped, so raise max_length or give other rows"


def test_one_side_of_the_split_that_is_dropped_is_fatal(check: Any) -> None:
    held = sorted(heldout_places(20, TrainConfig(eval_rows=4)))
    assert not check([LONG if at == held[0] else row for at, row in enumerate(GOOD)])["fatal"], "another is left"
    found = check([LONG if at in held else row for at, row in enumerate(GOOD)])
    assert (found["problems"][0]["kind"], found["problems"][0]["count"]) == ("unmeasured", len(held))
    assert f"line {held[0] + 1} (every held-out row {DROPPED}: 2 rows)" in found["fatal"]
    found = check([row if at in held else LONG for at, row in enumerate(GOOD)])
    assert f"(every row to train on {DROPPED}: 18 rows)" in found["fatal"]


HELLO = {"role": "assistant", "content": "hello"}
OPENED = {"messages": [HELLO, {"role": "user", "content": "ask"}, {"role": "assistant", "content": "say"}]}


def test_an_answer_to_nothing_is_told_and_the_rest_is_trained(
    services: Services, check: Any, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [OPENED, {"messages": [HELLO]}, *GOOD[:9]]
    assert "unasked" not in problems(check(rows, loss_on="all"))
    greetings = [{"messages": [HELLO | {"content": word}]} for word in ("hello", "hi", "good day")]
    assert "every row to train on is dropped" in check(greetings)["fatal"]
    found = check(rows, eval_rows=1)
    assert (problems(found), found["fatal"]) == ({"unasked": 2, "order": 2}, "")
    assert [text for text, trained in found["rendered"][0] if trained] == ["say<|im_end|>\n"]
    assert not any(trained for _, trained in found["rendered"][1])
    config = TrainConfig(model=str(tiny_model), dataset=str(tmp_path / "rows.jsonl"), eval_rows=1, max_length=64, r=4)
    trainer, _ = build_trainer(tmp_path / "run", config, services.settings, load_splits(config))
    assert len(trainer.train_dataset) == 9


def test_text_among_conversations_is_fatal(check: Any) -> None:
    found = check([*GOOD, {"text": "t"}, {"text": "u"}])
    assert problems(found) == {"unusable": 2}
    assert "line 21: is text and the first row is messages; give each kind a data set of its own" in found["fatal"]


def test_a_prompt_that_the_template_refuses_alone_is_told(check: Any, with_template: Callable[[str], str]) -> None:
    refusing = "{% if messages[-1]['role'] == 'system' %}{{ raise_exception('no question') }}{% endif %}"
    model = with_template(f"{refusing}{TURN}<|im_end|>{{% endfor %}}")
    row = {"messages": [{"role": "system", "content": "s"}, *OPENED["messages"]]}
    assert "line 21: the model's chat template refuses it (no question)" in check([*GOOD, row], model=model)["fatal"]
    assert not check([*GOOD, row], model=model, loss_on="all")["fatal"]


def test_lengths_are_the_rows_own_where_the_model_s_file_asks_for_padding(
    check: Any, tiny_model: Path, tmp_path: Path
) -> None:
    rows, folder = [*GOOD, pair("q", "word " * 80)], tmp_path / "padding"
    shutil.copytree(tiny_model, folder)
    tokenizer = load_tokenizer(str(folder))
    encode(tokenizer, [[{"role": "user", "content": text}] for text in ("a", "bcd")])
    tokenizer.backend_tokenizer.enable_truncation(20)
    tokenizer.save_pretrained(folder)
    kept = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    assert kept["padding"] and kept["truncation"]
    assert check(rows, model=str(folder)) == check(rows)


@pytest.fixture
def with_template(tiny_model: Path, tmp_path: Path) -> Callable[[str], str]:
    """The tiny model with another chat template."""

    def make(template: str) -> str:
        folder = tmp_path / "templated"
        shutil.copytree(tiny_model, folder)
        (folder / "chat_template.jinja").write_text(template, "utf-8")
        return str(folder)

    return make


def stops(result: dict[str, Any]) -> tuple[int, str]:
    (found,) = (one for one in result["problems"] if one["kind"] == "stop")
    return found["count"], found["rows"][0]


TURN = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"


@pytest.mark.parametrize(
    "ending", ["", "{% if m['role'] == 'user' %}<|im_end|>{% endif %}"], ids=["no turn", "no answer"]
)
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_a_template_that_never_ends_an_answer_is_told_of_every_row(
    check: Any, with_template: Callable[[str], str], ending: str, loss_on: str
) -> None:
    found = check(GOOD, model=with_template(f"{TURN}{ending} {{% endfor %}}"), loss_on=loss_on)
    assert stops(found) == (20, "line 1")


def test_rows_whose_answer_the_template_leaves_open_are_counted_wherever_they_stand(
    check: Any, with_template: Callable[[str], str]
) -> None:
    template = TURN + "{% if m['content'] != 'open' %}<|im_end|> #{% endif %}{% endfor %}"
    found = check([*GOOD, *(pair(f"q {n}", "open") for n in range(7)), *GOOD[:1]], model=with_template(template))
    assert stops(found) == (7, "line 21")


def test_an_answer_that_is_cut_has_no_stop_token_left(check: Any) -> None:
    found = check([*GOOD, pair("q", "word " * 80), pair("word " * 80, "a")])
    assert problems(found) == {"cut": 1, "dropped": 1, "stop": 1} and stops(found) == (1, "line 21")
    found = check([*GOOD, talk("q", "a", "r", "word " * 80), talk("q", "a", "word " * 80, "b")])
    assert problems(found) == {"cut": 2, "stop": 1} and stops(found) == (1, "line 21")


def test_marks_that_leave_the_stop_token_out_are_told_of_every_row(
    check: Any, with_template: Callable[[str], str]
) -> None:
    template = MARKED.replace("<|im_end|>{% endgeneration %}", "{% endgeneration %}<|im_end|>")
    assert stops(check(GOOD, model=with_template(template), loss_on="assistant")) == (20, "line 1")


def test_plain_text_ends_with_a_stop_token_unless_it_is_cut(check: Any) -> None:
    texts = [f"text {n}" for n in range(20)]
    fits, over = "b" * 63, "a<|im_end|>" + "b" * 62
    found = check([{"text": text} for text in (*texts, fits, over)])
    assert found["rendered"][0] == [("text 0<|im_end|>", True)]
    assert problems(found) == {"cut": 1, "stop": 1} and stops(found) == (1, "line 22")


def test_a_row_that_the_template_refuses_is_told(check: Any, with_template: Callable[[str], str]) -> None:
    refusing = "{% if messages[0]['content'] == 'odd' %}{{ raise_exception('turns must alternate') }}{% endif %}"
    found = check([*GOOD, pair("odd", "a")], model=with_template(f"{refusing}{TURN}<|im_end|>{{% endfor %}}"))
    assert "line 21: the model's chat template refuses it (turns must alternate); correct its turns" in found["fatal"]


MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def marked_model(with_template: Callable[[str], str]) -> str:
    """The tiny model with a template that marks the assistant's tokens."""
    return with_template(MARKED)


def talk(*contents: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(contents)]}


def test_assistant_loss_is_shown_on_every_assistant_turn_and_nowhere_else(check: Any, marked_model: str) -> None:
    rows = [talk("q", "one", "r", "two")] * 3
    (rendered, *_) = check(rows, model=marked_model, loss_on="assistant")["rendered"]
    assert [text for text, trained in rendered if trained] == ["one<|im_end|>", "two<|im_end|>"]
    late = [talk("q" * 80, "a"), talk("q", "a", "r" * 80, "b"), talk("q", "a")]
    assert problems(check(late, model=marked_model, loss_on="assistant")) == {"dropped": 1, "cut": 1}


def test_assistant_loss_is_refused_where_the_template_marks_nothing(check: Any) -> None:
    with pytest.raises(ConfigError, match=r"loss_on: assistant cannot be used here .*; choose completion"):
        check(GOOD, loss_on="assistant")


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all", "text"])
def test_what_is_shown_as_trained_is_what_the_trainer_trains(
    services: Services, tmp_path: Path, marked_model: str, check: Any, loss_on: Any
) -> None:
    rows = [{"text": f"say {n}"} if loss_on == "text" else talk(f"ask {n}", f"say {n}") for n in range(6)]
    loss_on = "all" if loss_on == "text" else loss_on
    shown = check(rows, model=marked_model, loss_on=loss_on, eval_rows=1)
    config = TrainConfig(
        model=marked_model, dataset=str(tmp_path / "rows.jsonl"), max_length=64, r=4, eval_rows=1, loss_on=loss_on
    )
    trainer, _ = build_trainer(tmp_path / "run", config, services.settings, load_splits(config))
    decode: Any = trainer.processing_class.decode
    trained = {
        decode(row["input_ids"]): decode([one for one in row["labels"] if one != -100]) for row in trainer.train_dataset
    }
    ours = {"".join(text for text, _ in one): "".join(text for text, on in one if on) for one in shown["rendered"]}
    both = ours.keys() & trained.keys()
    assert len(both) >= 2
    assert {text: ours[text] for text in both} == {text: trained[text] for text in both}


def test_columns_corrected_by_hand_are_used(check: Any) -> None:
    rows = [{"frage": f"q{n}", "antwort": f"a{n}"} for n in range(5)]
    assert check(rows)["fatal"]
    assert not check(rows, columns="prompt=frage, completion=antwort")["fatal"]


def test_the_bundled_task_has_no_problem(home: Path, tiny_model: Path) -> None:
    *_, last = preflight(TrainConfig(model=str(tiny_model)), Settings(home), Halt())
    assert (last.result["rows"], problems(last.result)) == (2000, {})


def test_a_stop_is_heeded(home: Path, tiny_model: Path) -> None:
    halt = Halt()
    steps = preflight(TrainConfig(model=str(tiny_model)), Settings(home), halt)
    next(steps)
    halt.set()
    assert list(steps) == []


def test_a_file_that_is_missing_is_told(home: Path, tiny_model: Path) -> None:
    with pytest.raises(DataError, match="there is no file"):
        list(preflight(TrainConfig(model=str(tiny_model), dataset="./nothing.jsonl"), Settings(home), Halt()))
