"""The README's figures are those of the committed result files."""

from __future__ import annotations

from benchmarks.readme import BEGIN, END, README, main, with_figures


def test_the_readme_says_what_the_result_files_say() -> None:
    assert main(["--check"]) == 0


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    text = README.read_text("utf-8")
    changed = text.replace(" x |", "9 x |", 1)
    assert changed != text
    assert with_figures(changed) == text


def test_what_stands_around_the_figures_is_kept() -> None:
    made = with_figures(f"before {BEGIN} old {END} after")
    assert made.startswith(f"before {BEGIN}") and made.endswith(f"{END} after") and " old " not in made
