"""What is known without a probe: the model's confidence, the question's words and kind, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from midsight.labels.text import squad_words
from midsight.labels.yes_no import read_yes_no

When = Literal["before the answer", "after the answer", "without the model"]
"""When a baseline is known: from the first token's distribution, from the whole answer, or from the input alone."""

CONFIDENCE = ("first_token_max", "first_token_entropy", "first_token_margin", "yes_no_certainty")
"""The scalars that are combined as the model's confidence."""
MOST_WORDS = 1000
LOWEST_LOGPROB = -50.0


@dataclass(frozen=True)
class Baseline:
    """A baseline's values."""

    name: str
    """As in result.json."""
    when: When
    """When it is known."""
    values: np.ndarray
    """float32 [n]: a score whose direction is learned; or [n, width]: features of a ridge probe."""


def baselines(table: pa.Table, strata: Mapping[str, Sequence[str]]) -> list[Baseline]:
    """Every baseline that the columns of a run allow.

    Args:
        table: A run's columns without vectors.
        strata: By stratum column, the value of each sample.

    Returns:
        Baselines, those without variation left out.
    """
    found = [*_input_baselines(table, strata)]
    if "first_token_top_logprobs" in table.column_names and not table["first_token_top_logprobs"].null_count:
        found += _first_token(table)
        found += _whole_answer(table) if "answer" in table.column_names else []
    return [one for one in found if np.ptp(one.values, axis=0).max() > 0]


def confidence_features(found: Sequence[Baseline]) -> np.ndarray | None:
    """The scalars of the first token's distribution, float64 [n, width]; None for a run without answers."""
    columns = [one.values for one in found if one.name in CONFIDENCE]
    return np.column_stack(columns).astype(np.float64) if columns else None


def _input_baselines(table: pa.Table, strata: Mapping[str, Sequence[str]]) -> list[Baseline]:
    lengths = [] if table["prompt_tokens"].null_count else [table["prompt_tokens"], table["image_tokens"]]
    return [
        *(Baseline(f"stratum: {name}", "without the model", _one_hot(values)) for name, values in strata.items()),
        Baseline("question_words", "without the model", _bag_of_words(table["question"].to_pylist())),
        *([Baseline("lengths", "without the model", np.column_stack(lengths).astype(np.float32))] if lengths else []),
    ]


def _first_token(table: pa.Table) -> list[Baseline]:
    top = [np.maximum(row, LOWEST_LOGPROB) for row in table["first_token_top_logprobs"].to_pylist()]
    width = max(len(row) for row in top)
    logprobs = np.full((len(top), width), LOWEST_LOGPROB, np.float32)
    for index, row in enumerate(top):
        logprobs[index, : len(row)] = row
    found = [
        Baseline("first_token_max", "before the answer", logprobs[:, 0]),
        Baseline(
            "first_token_entropy",
            "before the answer",
            -table["first_token_entropy"].to_numpy(zero_copy_only=False).astype(np.float32),
        ),
        Baseline("first_token_logprobs", "before the answer", logprobs),
    ]
    if width > 1:
        found.append(Baseline("first_token_margin", "before the answer", logprobs[:, 0] - logprobs[:, 1]))
    margin = _yes_no_margin(table) if "answer" in table.column_names else None
    if margin is not None:
        found.append(Baseline("yes_no_margin", "before the answer", margin))
        found.append(Baseline("yes_no_certainty", "before the answer", np.abs(margin)))
    return found


def _whole_answer(table: pa.Table) -> list[Baseline]:
    rows = [row or [LOWEST_LOGPROB] for row in table["answer_logprobs"].to_pylist()]
    rows = [np.maximum(row, LOWEST_LOGPROB) for row in rows]
    after: When = "after the answer"
    return [
        Baseline("answer_mean_logprob", after, np.array([row.mean() for row in rows], np.float32)),
        Baseline("answer_min_logprob", after, np.array([row.min() for row in rows], np.float32)),
        Baseline("answer_tokens", after, np.array([len(row) for row in rows], np.float32)),
    ]


def _yes_no_margin(table: pa.Table) -> np.ndarray | None:
    """Log-probability of first tokens that begin a yes, minus that of a no; None if the run says neither.

    Which tokens these are follows from the run's own answers, because a run stores no tokenizer.
    """
    begins: dict[int, Counter[bool]] = {}
    for answer, ids in zip(table["answer"].to_pylist(), table["answer_token_ids"].to_pylist(), strict=True):
        said = read_yes_no(answer) if answer and ids and answer.strip().lower().startswith(("yes", "no")) else None
        if said is not None:
            begins.setdefault(ids[0], Counter())[said] += 1
    kinds = {token: counts.most_common(1)[0][0] for token, counts in begins.items()}
    if {*kinds.values()} != {True, False}:
        return None
    ids, logprobs = table["first_token_top_ids"].to_pylist(), table["first_token_top_logprobs"].to_pylist()
    return np.array(
        [_mass(kinds, row, values, yes=True) - _mass(kinds, row, values, yes=False)
         for row, values in zip(ids, logprobs, strict=True)],
        np.float32,
    )  # fmt: skip


def _mass(kinds: Mapping[int, bool], ids: Sequence[int], logprobs: Sequence[float], *, yes: bool) -> float:
    """Log of the probability of tokens of one kind; where none is listed, that of the least likely listed one."""
    mine = [logprob for token, logprob in zip(ids, logprobs, strict=True) if kinds.get(token) is yes]
    return max(float(np.logaddexp.reduce(mine)) if mine else logprobs[-1], LOWEST_LOGPROB)


def _one_hot(values: Sequence[str]) -> np.ndarray:
    names, codes = np.unique(np.array(values), return_inverse=True)
    return np.eye(len(names), dtype=np.float32)[codes]


def _bag_of_words(questions: Sequence[str]) -> np.ndarray:
    """Which of the most frequent words each question has."""
    words = [{*squad_words(question)} for question in questions]
    counts = Counter(word for one in words for word in one)
    index = {word: column for column, (word, count) in enumerate(counts.most_common(MOST_WORDS)) if count > 1}
    out = np.zeros((len(words), max(len(index), 1)), np.float32)
    for row, one in enumerate(words):
        out[row, [index[word] for word in one if word in index]] = 1
    return out
