"""What leaving out risky answers did: how many, how much time, and how many of the others are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from midsight.errors import MidsightError, counted
from midsight.labels.judge import JUDGES, JudgeOptions
from midsight.labels.label import judge_run, parse_undecided
from midsight.store.reader import Run


@dataclass
class Decoding:
    """What this process decoded, and what it left out."""

    answers: int = 0
    """Answers that were decoded."""
    tokens: int = 0
    """Tokens of these answers."""
    seconds: float = 0.0
    """Time that decoding them took."""
    left_out: int = 0
    """Samples whose risk was too high to decode an answer."""

    def add(self, *, answers: int, tokens: int, seconds: float, left_out: int) -> None:
        """Counts one call."""
        self.answers += answers
        self.tokens += tokens
        self.seconds += seconds
        self.left_out += left_out

    @property
    def most_seconds_saved(self) -> float:
        """What the answers that were left out would have taken at the mean time of the others.

        This is an upper limit: answers that are decoded in one call share most of its time.
        """
        return self.seconds / self.answers * self.left_out if self.answers else 0.0


def describe_abstention(run: Run, decoding: Decoding, label: Mapping[str, Any]) -> Iterator[str]:
    """What a user should know after answers were left out, in sentences.

    Args:
        run: The run, in which some samples may have no answer because of their risk.
        decoding: What the process that asks decoded, and left out.
        label: How the probe's label was made: `label_source` and `label_options`, if they are known.

    Returns:
        The sentences.
    """
    risk = run.spec.risks
    if risk is None or risk.abstain_above is None:
        return
    reasons: Counter[str | None] = Counter()
    for batch in run.batches(["finish_reason"]):
        reasons.update(batch.column("finish_reason").to_pylist())
    left_out = reasons["abstained"]
    yield (
        f"{left_out:,} of {counted(len(run), 'sample')} {'was' if left_out == 1 else 'were'} not answered, because the "
        f"risk was above {risk.abstain_above:g}."
    )
    if decoding.left_out and decoding.answers:
        yield (
            f"Decoding {counted(decoding.answers, 'answer')} of {counted(decoding.tokens, 'token')} took "
            f"{decoding.seconds:.1f} s. At the same time for each, "
            f"leaving out {decoding.left_out:,} saved at most {decoding.most_seconds_saved:.1f} s; less, where a call "
            "decoded other answers anyway."
        )
    answered = len(run) - left_out
    if answered:
        yield from _accuracy(run, answered, label)


def _accuracy(run: Run, answered: int, label: Mapping[str, Any]) -> Iterator[str]:
    """How many answers are right, by the judge that made the probe's label; nothing if that was not a judge."""
    judge = str(label.get("label_source"))
    if judge not in JUDGES:
        return
    try:
        _, verdicts, _ = judge_run(run, judge, _options(label.get("label_options")))
    except (MidsightError, TypeError, ValueError):  # other questions, on which this judge cannot decide
        return
    decided = [verdict.right for verdict in verdicts if verdict and verdict.right is not None]
    if decided:
        right = sum(decided)
        yield (
            f"Of {counted(answered, 'answer')}, {right:,} of the {len(decided):,} that the judge {judge} can decide "
            f"are right ({100 * right / len(decided):.1f} %)."
        )


def _options(recorded: Any) -> JudgeOptions:
    """The judge's options as a label records them; raises TypeError, ValueError or MidsightError for others."""
    given = dict(recorded or {})
    return JudgeOptions(
        undecided=parse_undecided(given.get("undecided")),
        lenient=given.get("lenient") == "true",
        threshold=float(given.get("threshold", 0.5)),
        tolerance=float(given.get("tolerance", 0.0)),
    )
