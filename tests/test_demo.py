"""`midsight demo`: sixty real pairs through the untrained model, and that it says so."""

import io

import pytest
from rich.console import Console

from midsight.cli import load_with_notes, run_with_progress
from midsight.demo.show import UNTRAINED, run_demo


@pytest.mark.slow
def test_the_demo_extracts_sixty_pairs_and_says_that_its_model_is_untrained(tmp_path):
    pytest.importorskip("easy_vqa", reason="the demo's questions come from the package easy-vqa")
    console = Console(file=io.StringIO(), width=120)
    run = run_demo(tmp_path, load_with_notes, run_with_progress, console, max_new_tokens=2)
    table = run.table()
    assert (len(run), run.failures()) == (60, [])
    assert len(set(table["image_id"].to_pylist())) == 20
    assert all(len(answers) == 1 for answers in table["reference_answers"].to_pylist())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count(UNTRAINED) == 2
    assert "60 stored, 0 failed" in shown
    assert run.matrix("query_token_representation", layer=4).shape == (60, 32)  # as the last lines say
