"""Each judge's verdict on the answers in docs/labels.md, and the figures of published scorers."""

import re
from pathlib import Path

import pytest

from midsight.errors import MidsightError
from midsight.labels.judge import JUDGES, JudgeOptions, OutsideDomainError, find_judge, require_known_options
from midsight.labels.text import textvqa_form, vqa_form

PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text(encoding="utf-8")
WORDS = {True: "yes", False: "no", None: "-"}
VERDICTS = {True: "right", False: "wrong", None: "-"}
DEFAULT = JudgeOptions()


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split(" | ")]


def quoted(cell):
    """The texts between backticks; `\\n` is a newline."""
    return [text.replace("\\n", "\n") for text in re.findall(r"`([^`]*)`", cell)]


def table(heading):
    """Judges of a table of the page, and its rows."""
    lines = PAGE[PAGE.index(heading) :].split("\n\n")[0].splitlines()
    return [quoted(cell)[0] for cell in cells(lines[0]) if "`" in cell], [cells(line) for line in lines[2:]]


READERS, YES_NO_ROWS = table("| answer | `yes_no`")
OTHERS, OTHER_ROWS = table("| answer | reference |")


def judged(judge, answer, references, **options):
    try:
        return VERDICTS[JUDGES[judge].verdict(answer, references, JudgeOptions(**options), {}).right]
    except OutsideDomainError:
        return "refused"


def test_the_tables_have_at_least_sixty_answers_and_every_judge_but_vqa():
    assert len(YES_NO_ROWS) + len(OTHER_ROWS) >= 60
    assert {name.split()[0] for name in (*READERS, *OTHERS)} == {
        name for name in JUDGES if not name.startswith("vqa") and name != "choice:vlmevalkit"
    }


@pytest.mark.parametrize("row", YES_NO_ROWS, ids=lambda row: row[0])
def test_yes_no_rules_read_what_the_page_says(row):
    (answer,) = quoted(row[0]) or [""]
    for name, said in zip(READERS, row[1:], strict=True):
        judge, _, lenient = name.partition(" ")
        verdict = JUDGES[judge].verdict(answer, ["yes"], JudgeOptions(lenient=bool(lenient)), {})
        assert WORDS[verdict.read] == said, name
        assert verdict.right == verdict.read


@pytest.mark.parametrize("row", OTHER_ROWS, ids=lambda row: row[0])
def test_other_judges_say_what_the_page_says(row):
    (answer,) = quoted(row[0]) or [""]
    assert [judged(name, answer, quoted(row[1])) for name in OTHERS] == row[2:]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("A dog, a cat.", "dog cat"),
        ("10,000", "10000"),
        ("T-shirt", "t shirt"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        ("dont", "don't"),
        ("shouldnt've", "shouldn't've"),
        ("None", "0"),
        ("ten\tdogs\n", "10 dogs"),
        ("yes/no", "yes no"),
        ("the", ""),
    ],
)
def test_vqa_normalises_as_published(text, form):
    assert vqa_form(text) == form


def test_textvqa_takes_the_possessive_apart():
    assert textvqa_form("The dog's bone?") == "dog 's bone"


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_scores_as_published(matches, score):
    references = ["red"] * matches + ["blue"] * (10 - matches)
    verdict = JUDGES["vqa"].verdict("Red", references, DEFAULT, {})
    assert verdict.score == pytest.approx(score)
    assert verdict.right is (score >= 0.5)


def test_vqa_refuses_few_references():
    with pytest.raises(OutsideDomainError, match="at least 4 reference answers, not 3"):
        JUDGES["vqa"].verdict("red", ["red"] * 3, DEFAULT, {})


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("a red car", "red car", 1),
        ("red", "red car", 2 / 3),
        ("blue bus", "red car", 0),
        ("the car is red", "car", 0.5),
    ],
)
def test_f1_is_squads(answer, reference, score):
    verdict = JUDGES["f1"].verdict(answer, ["nothing", reference], DEFAULT, {})
    assert verdict.score == pytest.approx(score)
    assert verdict.right is (score >= 0.5)


CHOICES, CHOICE_ROWS = table("| answer | reference | `choice` |")
OPTIONS = {"A": "a dog", "B": "a red cat", "C": "cat", "D": "2"}


def test_the_page_names_the_options_of_its_last_table():
    assert ", ".join(f"{letter}: {text}" for letter, text in OPTIONS.items()) in PAGE


@pytest.mark.parametrize("row", CHOICE_ROWS, ids=lambda row: row[0])
def test_options_are_chosen_by_letter_or_by_text_as_the_page_says(row):
    (answer,) = quoted(row[0]) or [""]
    said = [VERDICTS[JUDGES[name].verdict(answer, quoted(row[1]), DEFAULT, OPTIONS).right] for name in CHOICES]
    assert said == row[2:]


def test_choices_are_refused_without_what_they_need():
    with pytest.raises(OutsideDomainError, match="needs the question's options, in columns A, B"):
        JUDGES["choice:vlmevalkit"].verdict("B", ["B"], DEFAULT, {})
    with pytest.raises(OutsideDomainError, match="needs one letter, or an option's text"):
        JUDGES["choice"].verdict("B", ["a horse"], DEFAULT, OPTIONS)
    assert JUDGES["choice"].verdict("E", ["B"], DEFAULT, OPTIONS).right is None
    assert JUDGES["choice"].verdict("E", ["B"], DEFAULT, {}).right is False


def test_thresholds_and_tolerances_that_make_no_sense_are_refused():
    for options in (JudgeOptions(threshold=3), JudgeOptions(threshold=0), JudgeOptions(threshold=float("nan"))):
        with pytest.raises(MidsightError, match="is not above 0 and at most 1"):
            require_known_options(JUDGES["f1"], options)
    with pytest.raises(MidsightError, match=r"tolerance=-1 is not a relative error"):
        require_known_options(JUDGES["numeric"], JudgeOptions(tolerance=-1))


def test_numbers_may_differ_by_the_tolerance():
    assert judged("numeric", "about 104", ["100"], tolerance=0.05) == "right"
    assert judged("numeric", "106", ["100"], tolerance=0.05) == "wrong"


def test_undecided_is_null_here_and_wrong_for_published_scorers():
    assert JUDGES["yes_no"]("A dog", ["yes"], DEFAULT).right is None
    assert JUDGES["yes_no"]("A dog", ["yes"], JudgeOptions(undecided="wrong")).right is False
    assert JUDGES["yes_no:mme"]("A dog", ["yes"], DEFAULT).right is False
    assert JUDGES["yes_no:mme"]("A dog", ["yes"], JudgeOptions(undecided="null")).right is None


@pytest.mark.parametrize("reference", ["n, o", "maybe", "", "Yes, there is"])
def test_references_that_are_not_yes_or_no_are_refused(reference):
    with pytest.raises(OutsideDomainError):
        JUDGES["yes_no"].verdict("yes", [reference], DEFAULT, {})


def test_references_that_contradict_each_other_are_refused():
    with pytest.raises(OutsideDomainError, match="agree"):
        JUDGES["yes_no"].verdict("yes", ["yes", "no"], DEFAULT, {})
    assert JUDGES["yes_no"].verdict("yes", ["1", "True"], DEFAULT, {}).right


def test_unknown_judges_and_options_are_refused_by_name():
    with pytest.raises(MidsightError, match="judge='gpt' is not a judge; choose from yes_no, yes_no:pope"):
        find_judge("gpt")
    with pytest.raises(MidsightError, match="judge='exact' takes no lenient; leave it out, or choose from yes_no"):
        require_known_options(JUDGES["exact"], JudgeOptions(lenient=True))
