"""Judges by name: each says from answer and references whether the answer is right."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from midsight.errors import MidsightError, Option
from midsight.labels import yes_no
from midsight.labels.choice import Choices, read_as_vlmevalkit, read_choice, reference_choice
from midsight.labels.numbers import chartqa_correct, is_near, read_number
from midsight.labels.overlap import best_f1, comparable, is_contained, is_equal, vqa_score
from midsight.labels.text import textvqa_form, vqa_form

Undecided = Literal["null", "wrong"]
"""What becomes of an answer from which a judge reads nothing."""

FEWEST_VQA_REFERENCES = 4
"""With fewer, leaving one out makes a score of 1 impossible."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says about one answer."""

    right: bool | None
    """None if undecided."""
    score: float | None = None
    """The score from which `right` follows; None if the judge has none."""
    read: bool | None = None
    """Whether the answer says yes, as a yes/no judge read it."""
    wanted: bool | None = None
    """Whether the reference says yes, for a yes/no judge."""


UNDECIDED = Verdict(None)
NO_CHOICES: Choices = {}


class OutsideDomainError(ValueError):
    """A reference that the judge cannot use; the text says what it needs."""


@dataclass(frozen=True)
class JudgeOptions:
    """What changes a judge's verdicts."""

    undecided: Undecided | None = None
    """By default null, and wrong for the rules of published scorers, which count so."""
    lenient: bool = False
    """yes_no: a statement without negation is a yes."""
    threshold: float = 0.5
    """f1, vqa: the lowest score that is right."""
    tolerance: float = 0.0
    """numeric: largest relative error that is right."""


Rule = Callable[[str, Sequence[str], JudgeOptions, Choices], Verdict]
"""Answer, references (at least one), options of the judge, options of the question -> verdict.

Raises OutsideDomainError.
"""


@dataclass(frozen=True)
class Judge:
    """A rule that compares an answer with its references."""

    name: str
    """As `--judge` takes it."""
    verdict: Rule
    """The rule."""
    summary: str
    """What it is, in one line."""
    published: bool = False
    """Whether it reproduces a published scorer, where an undecided answer is wrong."""
    takes: tuple[str, ...] = ()
    """The fields of JudgeOptions that it heeds, besides `undecided`."""

    def __call__(
        self, answer: str, references: Sequence[str], options: JudgeOptions, choices: Choices = NO_CHOICES
    ) -> Verdict:
        """The verdict on one answer; raises OutsideDomainError."""
        verdict = self.verdict(answer, references, options, choices)
        undecided = options.undecided or ("wrong" if self.published else "null")
        if verdict.right is None and undecided == "wrong":
            return Verdict(False, verdict.score, verdict.read, verdict.wanted)
        return verdict


def find_judge(name: str) -> Judge:
    """The judge of that name; raises MidsightError."""
    if name not in JUDGES:
        raise MidsightError(
            Option("judge", name), f" is not a judge; choose from {', '.join(JUDGES)}, or take verdicts from a file."
        )
    return JUDGES[name]


def require_known_options(judge: Judge, options: JudgeOptions) -> None:
    """Raises MidsightError for an option that the judge does not heed, or cannot."""
    for name in ("lenient", "threshold", "tolerance"):
        if getattr(options, name) != getattr(JudgeOptions(), name) and name not in judge.takes:
            takers = ", ".join(one.name for one in JUDGES.values() if name in one.takes)
            raise MidsightError(
                Option("judge", judge.name), " takes no ", Option(name), f"; leave it out, or choose from {takers}."
            )
    if not 0 < options.threshold <= 1:
        raise MidsightError(Option("threshold", options.threshold), " is not above 0 and at most 1, as scores are.")
    if not 0 <= options.tolerance < float("inf"):
        raise MidsightError(Option("tolerance", options.tolerance), " is not a relative error of 0 or more.")


def _yes_no(read: Callable[[str], bool | None]) -> Rule:
    def verdict(answer: str, references: Sequence[str], options: JudgeOptions, _: Choices) -> Verdict:
        wanted = _wanted_yes_no(references)
        said = yes_no.read_yes_no(answer, lenient=True) if options.lenient else read(answer)
        return Verdict(None if said is None else said == wanted, read=said, wanted=wanted)

    return verdict


def _wanted_yes_no(references: Sequence[str]) -> bool:
    wanted = {yes_no.reference_yes_no(reference) for reference in references}
    if None in wanted:
        raise OutsideDomainError("yes_no needs yes, no, true, false, y, n, 1 or 0")
    if len(wanted) > 1:
        raise OutsideDomainError("yes_no needs references that agree")
    return bool(wanted.pop())


def _exact(answer: str, references: Sequence[str], *_: object) -> Verdict:
    _require_text(references, "exact")
    return Verdict(is_equal(answer, references))


def _exact_raw(answer: str, references: Sequence[str], *_: object) -> Verdict:
    return Verdict(answer in references)


def _contains(answer: str, references: Sequence[str], *_: object) -> Verdict:
    _require_text(references, "contains")
    return Verdict(is_contained(answer, references))


def _f1(answer: str, references: Sequence[str], options: JudgeOptions, _: Choices) -> Verdict:
    _require_text(references, "f1")
    score = best_f1(answer, references)
    return Verdict(score >= options.threshold, score)


def _vqa(form: Callable[[str], str]) -> Rule:
    def verdict(answer: str, references: Sequence[str], options: JudgeOptions, _: Choices) -> Verdict:
        if len(references) < FEWEST_VQA_REFERENCES:
            raise OutsideDomainError(
                f"vqa needs at least {FEWEST_VQA_REFERENCES} reference answers, not {len(references)}"
            )
        score = vqa_score(answer, references, form)
        return Verdict(score >= options.threshold - 1e-9, score)

    return verdict


def _numeric(answer: str, references: Sequence[str], options: JudgeOptions, _: Choices) -> Verdict:
    wanted = [read_number(reference) for reference in references]
    numbers = [number for number in wanted if number is not None]
    if len(numbers) < len(wanted):
        raise OutsideDomainError("numeric needs one number")
    said = read_number(answer)
    if said is None:
        return UNDECIDED
    return Verdict(any(is_near(said, number, options.tolerance) for number in numbers))


def _chartqa(answer: str, references: Sequence[str], *_: object) -> Verdict:
    return Verdict(any(chartqa_correct(answer, reference) for reference in references))


def _choice(read: Callable[[str, Choices], str | None]) -> Rule:
    def verdict(answer: str, references: Sequence[str], _: JudgeOptions, choices: Choices) -> Verdict:
        wanted = {reference_choice(reference, choices) for reference in references}
        if None in wanted:
            raise OutsideDomainError("choice needs one letter" + (", or an option's text" if choices else ""))
        said = read(answer, choices)
        return UNDECIDED if said is None else Verdict(said in wanted)

    return verdict


def _vlmevalkit_choice(answer: str, references: Sequence[str], options: JudgeOptions, choices: Choices) -> Verdict:
    if not choices:
        raise OutsideDomainError(
            "choice:vlmevalkit needs the question's options, in columns A, B, ... or in a list named choices or options"
        )
    return _choice(read_as_vlmevalkit)(answer, references, options, choices)


def _require_text(references: Sequence[str], judge: str) -> None:
    if not all(comparable(reference) for reference in references):
        raise OutsideDomainError(f"{judge} needs a reference that is not empty")


JUDGES: Mapping[str, Judge] = {
    judge.name: judge
    for judge in (
        Judge("yes_no", _yes_no(yes_no.read_yes_no), "a leading yes or no, a lone one, or a negated statement",
              takes=("lenient",)),
        Judge("yes_no:pope", _yes_no(yes_no.read_as_pope), "POPE's evaluate.py", published=True),
        Judge("yes_no:vlmevalkit", _yes_no(yes_no.read_as_vlmevalkit), "VLMEvalKit", published=True),
        Judge("yes_no:mme", _yes_no(yes_no.read_as_mme), "MME", published=True),
        Judge("yes_no:exact", _yes_no(yes_no.read_exactly), "lmms-eval's POPE", published=True),
        Judge("yes_no:amber", _yes_no(yes_no.read_as_amber), "AMBER", published=True),
        Judge("exact", _exact, "equal to a reference after VQA's normalisation"),
        Judge("exact:raw", _exact_raw, "GQA's eval.py: the same text", published=True),
        Judge("contains", _contains, "a reference is in the answer, as whole words"),
        Judge("f1", _f1, "SQuAD's F1 of words, the best over references", takes=("threshold",)),
        Judge("vqa", _vqa(vqa_form), "VQA's soft accuracy over 4 to 10 references", takes=("threshold",)),
        Judge("vqa:textvqa", _vqa(textvqa_form), "the same with TextVQA's normalisation", takes=("threshold",)),
        Judge("numeric", _numeric, "the one number of the answer", takes=("tolerance",)),
        Judge("numeric:chartqa", _chartqa, "ChartQA's relaxed accuracy", published=True),
        Judge("choice", _choice(read_choice), "the chosen letter, or the option whose text is in the answer"),
        Judge("choice:vlmevalkit", _vlmevalkit_choice, "VLMEvalKit without a language model", published=True),
    )
}  # fmt: skip
"""Every judge by name."""
