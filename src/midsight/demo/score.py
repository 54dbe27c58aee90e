"""Shares of right answers in the demo."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from midsight.labels.share import Share


def is_right(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is one of the references, ignoring white space around it."""
    return answer.strip() in references


def by_kind(rows: Iterable[Mapping[str, Any]]) -> dict[str, Share]:
    """Share of right answers by kind of question, for the rows of a run; kinds are sorted, `all` is last."""
    right_by_kind: dict[str, list[bool]] = {}
    for row in rows:
        right = is_right(row["answer"], row["reference_answers"])
        right_by_kind.setdefault(row["kind"], []).append(right)
    everything = [right for of_kind in right_by_kind.values() for right in of_kind]
    shares = {kind: Share(sum(of_kind), len(of_kind)) for kind, of_kind in sorted(right_by_kind.items())}
    return shares | ({"all": Share(sum(everything), len(everything))} if everything else {})
