"""`midsight demo`: several questions on each test scene through the demo model, and what it prints."""

import io
import re

import pytest
from rich.console import Console

from midsight.commands.demo import extract_questions
from midsight.demo.scenes import KINDS, ask
from midsight.demo.show import LAYER, SCENES, TRAINED, run_demo

FEW = 6


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demo on a few scenes: its folder, its run, and what it printed."""
    out = tmp_path_factory.mktemp("demo")
    console = Console(file=io.StringIO(), width=140)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run = run_demo(out, extract_questions, console, scenes=FEW)
    return out, run, console.file.getvalue()  # type: ignore[attr-defined]


def test_the_demo_asks_hundreds_of_questions_and_several_on_each_scene():
    asked = [len(ask("test", index)) for index in range(SCENES)]
    assert 300 <= sum(asked) <= 2000
    assert min(asked) >= 4


def test_every_question_on_the_scenes_is_answered(shown):
    _, run, printed = shown
    asked = [question for index in range(FEW) for question in ask("test", index)]
    table = run.table()
    assert run.failures() == []
    assert table["question"].to_pylist() == [question.text for question in asked]
    assert table["reference_answers"].to_pylist() == [[question.answer] for question in asked]
    assert len(set(table["image_id"].to_pylist())) == FEW
    assert f"{len(asked)} stored, 0 failed" in printed


def test_answers_are_shown_with_references_and_accuracy_by_kind(shown):
    out, run, printed = shown
    assert printed.count(TRAINED) == 1
    for kind in (*KINDS, "all"):
        assert re.search(rf"│ {kind} +│ +\d+ +│ +\d+ +│ [\d.]+ % \(", printed), kind
    assert f'open_run("{out / "run"}")' in printed
    assert f"# {list(run.matrix('query_token_representation', layer=LAYER).shape)}" in printed


def test_the_demo_ends_with_a_report_of_its_run(shown):
    out, run, printed = shown
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"The run as a page, with a map of its vectors: {out / 'report.html'}" in printed
    assert page.count("data:image/webp;base64,") == FEW
    assert f"<b>{len(run)}</b> samples" in page


def test_the_contact_sheet_holds_every_picture_and_answer(shown):
    out, run, _ = shown
    page = (out / "answers.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == page.count("<img") == FEW
    assert page.count("<li class=") == len(run)
    assert page.count('<li class="right">') > page.count('<li class="wrong">')
