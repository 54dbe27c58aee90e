"""Which samples go through the model together: questions on one image, prompts of like length, as the budget allows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from midsight.extraction.budget import Budget
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import Plan
from midsight.extraction.sharing import prefix_key, prefix_length

MOST_PADDING = 1.25
"""Tokens of a call's beginnings, padding counted, by token that is none: beyond it a call more is cheaper."""


@dataclass(frozen=True)
class CacheRow:
    """Samples that are one row of the KV cache: questions behind one beginning, or a sample alone."""

    items: tuple[PreparedSample, ...]
    """In the order of the dataset."""
    begin: int
    """Tokens that they share."""
    room: int
    """Tokens that each answer may take."""

    @property
    def rest(self) -> int:
        """Tokens behind the beginning, room for the answers counted."""
        return sum(len(item.prompt.token_ids) - self.begin + self.room for item in self.items)

    def pieces(self, samples: int) -> list[CacheRow]:
        """Rows of at most `samples` samples, cut evenly."""
        count = -(-len(self.items) // samples)
        bounds = [piece * len(self.items) // count for piece in range(count + 1)]
        return [replace(self, items=self.items[start:stop]) for start, stop in pairwise(bounds)]


def rows_of(window: Sequence[PreparedSample], plan: Plan) -> list[CacheRow]:
    """The window's samples as rows, short ones first, those of one prefix behind each other and in their order."""
    room = plan.max_new_tokens if plan.answers else 0
    groups: dict[object, list[PreparedSample]] = {}
    for item in window:
        groups.setdefault(prefix_key(item), []).append(item)
    in_order = sorted(groups.values(), key=lambda items: prefix_length(items[0]))
    if plan.share:
        return [CacheRow(tuple(items), prefix_length(items[0]), room) for items in in_order]
    return [CacheRow((item,), len(item.prompt.token_ids), room) for items in in_order for item in items]


def cut(window: Sequence[PreparedSample], plan: Plan, budget: Budget) -> Iterator[tuple[list[PreparedSample], int]]:
    """The samples of the calls that the window takes, and the tokens of each, by what the budget is when it is asked.

    An image's questions stay together where they fit.
    """
    waiting = deque(rows_of(window, plan))
    while waiting:
        taken: list[CacheRow] = []
        while waiting:
            row = waiting[0]
            most = budget.samples if row.begin + row.rest <= budget.tokens else max(1, len(row.items) // 2)
            if len(row.items) > min(most, budget.samples):
                waiting.popleft()
                waiting.extendleft(reversed(row.pieces(min(most, budget.samples))))
                continue
            if taken and not fits([*taken, row], budget):
                break
            taken.append(waiting.popleft())
        yield [item for row in taken for item in row.items], tokens_of(taken)


def fits(rows: Sequence[CacheRow], budget: Budget) -> bool:
    """Whether the rows are few enough, small enough and like enough for one call."""
    begins = [row.begin for row in rows]
    return (
        sum(len(row.items) for row in rows) <= budget.samples
        and tokens_of(rows) <= budget.tokens
        and len(rows) * max(begins) <= MOST_PADDING * sum(begins)
    )


def tokens_of(rows: Sequence[CacheRow]) -> int:
    """Tokens of the rows as one rectangle."""
    return len(rows) * (max(row.begin for row in rows) + max(row.rest for row in rows))
