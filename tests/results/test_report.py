"""A report: whole, self-contained, escaped, the same figures in three formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from qlora_demo.config import TrainConfig
from qlora_demo.errors import WorkError
from qlora_demo.records import Choice, TrainMetrics
from qlora_demo.results.history import RunNote
from qlora_demo.results.report import Report, save, to_csv, to_html, to_json
from qlora_demo.results.votes import Comparison, NewComparison, Tally, WinRate

BLIND = NewComparison("r", "", "=blind", {}, ("b", "a"), {"a": {"text": "x"}})
HOSTILE = "<script>alert(1)</script>"
PROOF = {"precision": "nf4", "adapter": "on", "fingerprint": "ab12"}
TIMED = {
    "text": "four words are here",
    "error": "",
    "new_tokens": 4,
    "ttft_seconds": 0.25,
    "tokens_per_second": 8.0,
    "model_bytes": 1 << 28,
    "proof": PROOF,
}


SUMMARY = {"train_loss": 0.1234, "peak_memory_bytes": 1 << 30, "score": {"exact_match": 0.125, "rows": 8}}
ONE_TOKEN = {**TIMED, "new_tokens": 1, "tokens_per_second": None, "earlier": "user: hello"}


def row(prompt: str, before: float, after: float) -> dict[str, Any]:
    def answer(loss: float) -> dict[str, Any]:
        return {"text": "{}", "exact_match": loss < 1, "rouge_l": None, "loss": loss}

    return {"prompt": prompt, "reference": "{}", "answers": {"base": answer(before), "adapter": answer(after)}}


@pytest.fixture
def whole() -> Report:
    figures = {"rows": 2, "loss": 0.5, "perplexity": 1.65, "token_accuracy": 0.9, "exact_match": 0.75}
    return Report(
        title=f"Run {HOSTILE}",
        made_at=0.0,
        run="20260101-000000-qlora-0001",
        config=TrainConfig().model_dump(),
        state={"status": "finished", "error": "", "summary": SUMMARY},
        choices=(Choice("Gradient checkpointing", "off", "it fits"),),
        versions={"torch": "2.13.0"},
        machine={"device": "a card"},
        metrics=[
            TrainMetrics(step=1, time=1.0, loss=2.0, learning_rate=1e-4),
            TrainMetrics(2, 2.0, eval_loss=math.nan),
        ],
        evaluation={
            "complete": False,
            "left_out": 2,
            "splits": {"test": {"base": figures | {"exact_match": 0.0}, "adapter": figures}},
            "rows": {"test": [row("alpha", 3.0, 0.1), row(HOSTILE, 2.0, 2.5)]},
        },
        fidelity={
            "sentence": "Ship this one.",
            "left_out": 1,
            "merges": {"merged:original": {"kl_mean": 0.08, "rows": 2}},
        },
        prompts={"prompts": [{"prompt": "one of a set", "answers": {"base": TIMED}}]},
        conversations=[{"prompt": "=1+1", "system": "be brief", "answers": {"adapter": TIMED, "base": ONE_TOKEN}}],
        note=RunNote(f"looks well {HOSTILE}", ("=tag", "kept")),
        comparisons=[
            Comparison("id", 1.0, "base", NewComparison("r", "", "=blind", {}, ("b", "a"), {"a": {"text": "x"}}))
        ],
        votes=Tally("r", 1, 0, 0, (WinRate("adapter", 1, 1, 1.0, 0.2, 1.0),), "Too few votes."),
    )


@pytest.fixture
def empty(whole: Report) -> Report:
    return replace(
        whole,
        evaluation=None,
        fidelity=None,
        prompts=None,
        conversations=(),
        note=RunNote(),
        votes=None,
        comparisons=(),
        metrics=(),
        choices=(),
    )


class Page(HTMLParser):
    """What a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]


def test_the_page_needs_no_network_and_runs_no_script(whole: Report) -> None:
    text = to_html(whole)
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!['\"]?#)|@import", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_holds_every_part(whole: Report) -> None:
    text = to_html(whole)
    for expected in (
        "per_device_train_batch_size",
        "mean training loss</dt><dd>0.1234",
        "exact match, answered at its end</dt><dd>12.5% of 8 rows",
        "1.0 GiB",
        "loss (nats per token)",
        "75.0%",
        "adapter is not told apart from base, right on 1 of 2 rows against 0 (p = 1)",
        "Based on what was done so far.",
        "Left out: 2 rows, too long",
        "<small>4 tokens, 250 ms to the first, 8.0 tokens/s, 256 MiB",
        "<small>1 token, 250 ms to the first, 256 MiB",
        "<details><summary>said before</summary><pre>user: hello</pre>",
        "Ship this one.",
        "Left out: 1 row, too long",
        "0.08",
        "Too few votes.",
        "95% Wilson",
        "four words are here",
        "answered by nf4 weights, adapter on, logits ab12",
        "be brief",
        "looks well &lt;script&gt;",
        "Tags: =tag, kept",
        "one of a set",
        "it fits",
        "a card",
        "@media print",
    ):
        assert expected in text, expected
    assert text.count("<svg") == 3, "loss, learning rate, scores"
    short = text[text.index("In short") : text.index("Training results")]
    for told in ("adapter is not told apart from base", "Ship this one.", "Too few votes."):
        assert told in short, "what it all comes to stands first"


def test_rows_are_told_apart_by_what_they_show(whole: Report) -> None:
    text = to_html(whole)
    assert "row 1: best, worst, most changed under adapter" in text
    assert text.count('<div class="talk"><p><small>row') == 2


def test_what_was_not_measured_is_left_out(empty: Report) -> None:
    text = to_html(empty)
    for absent in ("Before and after", "merged model", "votes", "Conversations", "Prompt set", "Curves", "<svg"):
        assert absent not in text, absent
    assert zipfile.ZipFile(io.BytesIO(to_csv(empty))).namelist() == ["config.csv", "versions.csv"]


def test_json_is_json_also_where_a_figure_is_no_number(whole: Report) -> None:
    found = json.loads(to_json(whole), parse_constant=pytest.fail)
    assert found["metrics"][1]["eval_loss"] is None
    assert found["evaluation"]["splits"]["test"]["adapter"]["exact_match"] == 0.75
    assert found["votes"]["verdict"] == "Too few votes."
    assert found["note"] == {"text": f"looks well {HOSTILE}", "tags": ["=tag", "kept"]}


def sheet(report: Report, name: str) -> list[dict[str, str]]:
    text = zipfile.ZipFile(io.BytesIO(to_csv(report))).read(f"{name}.csv").decode()
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_csv_holds_the_figures_with_all_digits(whole: Report) -> None:
    assert [line["exact_match"] for line in sheet(whole, "evaluation")] == ["0.0", "0.75"]
    assert len(sheet(whole, "rows")) == 4
    assert sheet(whole, "fidelity")[0]["kl_mean"] == "0.08"
    talk, short = sheet(whole, "conversations")
    assert (talk["system"], talk["proof fingerprint"]) == ("be brief", "ab12")
    assert (short["tokens_per_second"], short["earlier"]) == ("", "user: hello")
    assert sheet(whole, "note")[0]["tags"] == "'=tag, kept"
    (blind,) = sheet(whole, "comparisons")
    assert (blind["prompt"], blind["shown"], blind["choice"], blind["a said"]) == ("'=blind", "b, a", "base", "x")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_takes_no_cell_for_a_formula(whole: Report, start: str) -> None:
    talk = {"prompt": f"{start}1+1", "system": "", "answers": {"base": TIMED}}
    assert sheet(replace(whole, conversations=[talk]), "conversations")[0]["prompt"] == f"'{start}1+1"


def test_saving_writes_three_files_and_nothing_else(whole: Report, tmp_path: Path) -> None:
    paths = save(whole, tmp_path / "report")
    assert {kind: path.suffix for kind, path in paths.items()} == {"html": ".html", "json": ".json", "csv": ".zip"}
    assert sorted((tmp_path / "report").iterdir()) == sorted(paths.values())


def test_a_folder_that_cannot_be_written_is_named(whole: Report, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("in the way")
    with pytest.raises(WorkError, match=f"{tmp_path / 'report'}: cannot be written: File exists"):
        save(whole, tmp_path / "report")
