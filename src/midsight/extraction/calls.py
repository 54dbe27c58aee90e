"""The plan: which samples go through the model together, and how.

Questions on one image share a prefix. Prompts of similar length share a call, which is as large as the budget allows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from midsight.extraction.budget import Budget
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest

MAX_PADDING = 1.25
"""Largest ratio of a call's prefix tokens with padding to those without; above it, a second call is cheaper."""


@dataclass(frozen=True)
class CacheRow:
    """Samples that are one row of the KV cache: questions after one prefix, or one sample alone."""

    items: tuple[PreparedSample, ...]
    """In the order of the dataset."""
    prefix: int
    """Number of tokens that they share; the whole prompt if a sample shares nothing."""
    answer_tokens: int
    """Maximum number of tokens in each answer."""
    long_factors: bool
    """Whether the prompts are longer than the longrope threshold, and so use the long rotary factors."""

    @property
    def suffix(self) -> int:
        """Number of tokens after the prefix, all answers included."""
        return sum(len(item.prompt.token_ids) - self.prefix + self.answer_tokens for item in self.items)

    @property
    def is_shareable(self) -> bool:
        """Whether the prefix can go through the decoder on its own."""
        return self.prefix < len(self.items[0].prompt.token_ids)

    def pieces(self, samples: int) -> list[CacheRow]:
        """Rows of at most `samples` samples, cut evenly."""
        count = -(-len(self.items) // samples)
        bounds = [piece * len(self.items) // count for piece in range(count + 1)]
        return [replace(self, items=self.items[start:stop]) for start, stop in pairwise(bounds)]


@dataclass(frozen=True)
class Call:
    """One call of the model: rows of one kind, extracted exactly as planned."""

    rows: tuple[CacheRow, ...]
    """All rows use the same rotary factors; either all or none of them can share a prefix."""

    @property
    def items(self) -> list[PreparedSample]:
        """All samples, row by row."""
        return [item for row in self.rows for item in row.items]

    @property
    def row_numbers(self) -> list[int]:
        """Per sample: the index of its row."""
        return [number for number, row in enumerate(self.rows) for _ in row.items]

    @property
    def long_factors(self) -> bool:
        """Whether the prompts use the long rotary factors."""
        return self.rows[0].long_factors

    @property
    def shares_prefixes(self) -> bool:
        """Whether prefixes go through the decoder first, and then all questions on them."""
        return len(self.items) > len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of the rows as one rectangle, padding and answers included."""
        return len(self.rows) * (max(row.prefix for row in self.rows) + max(row.suffix for row in self.rows))

    def halves(self) -> tuple[Call, Call]:
        """The first and the second half of the samples, each a call of the same kind; needs two samples or more."""
        middle = len(self.items) // 2
        return self._part(0, middle), self._part(middle, len(self.items))

    def _part(self, start: int, stop: int) -> Call:
        rows, first = [], 0
        for row in self.rows:
            items = row.items[max(0, start - first) : max(0, stop - first)]
            first += len(row.items)
            if items:
                rows.append(replace(row, items=items))
        return Call(tuple(rows))


def make_rows(window: Sequence[PreparedSample], request: ResolvedRequest) -> list[CacheRow]:
    """The samples as cache rows, one kind after the other; within a kind, short prefixes come first."""
    groups: dict[object, list[PreparedSample]] = {}
    for item in window:
        groups.setdefault((is_long(item, request), item.prefix_key), []).append(item)
    rows: list[CacheRow] = []
    for items in sorted(groups.values(), key=lambda items: items[0].prefix_length):
        shareable, long_factors = may_share(items[0], request), is_long(items[0], request)
        for together in [items] if shareable else [[item] for item in items]:
            prefix = items[0].prefix_length if shareable else len(together[0].prompt.token_ids)
            rows.append(CacheRow(tuple(together), prefix, request.answer_tokens, long_factors))
    return sorted(rows, key=kind_of)


def is_long(item: PreparedSample, request: ResolvedRequest) -> bool:
    """Whether a prompt is longer than the longrope threshold, and so uses the long rotary factors."""
    return request.longrope_threshold is not None and len(item.prompt.token_ids) > request.longrope_threshold


def may_share(item: PreparedSample, request: ResolvedRequest) -> bool:
    """Whether a prompt's prefix may go through the decoder on its own.

    It may not if the prompt uses the long rotary factors and its prefix alone would use the short ones.
    """
    crosses = is_long(item, request) and item.prefix_length <= (request.longrope_threshold or 0)
    return request.share and not crosses


def kind_of(row: CacheRow) -> tuple[bool, bool]:
    """What the rows of one call have in common."""
    return row.long_factors, row.is_shareable


def plan_whole(items: Sequence[PreparedSample], request: ResolvedRequest) -> list[Call]:
    """All samples in as few calls as their kinds allow, whatever their number and lengths."""
    by_kind: dict[tuple[bool, bool], list[CacheRow]] = {}
    for row in make_rows(items, request):
        by_kind.setdefault(kind_of(row), []).append(row)
    return [Call(tuple(rows)) for rows in by_kind.values()]


def plan_calls(window: Sequence[PreparedSample], request: ResolvedRequest, budget: Budget) -> Iterator[Call]:
    """The calls for a window of samples. The budget at the moment when a call is taken decides its size.

    An image's questions stay together if they fit.
    """
    waiting = deque(make_rows(window, request))
    while waiting:
        taken: list[CacheRow] = []
        while waiting:
            row = waiting[0]
            whole = row.prefix + row.suffix <= budget.tokens
            limit = min(budget.samples, budget.samples if whole else max(1, len(row.items) // 2))
            if len(row.items) > limit:
                waiting.popleft()
                waiting.extendleft(reversed(row.pieces(limit)))
                continue
            if taken and not fits([*taken, row], budget):
                break
            taken.append(waiting.popleft())
        yield Call(tuple(taken))


def fits(rows: Sequence[CacheRow], budget: Budget) -> bool:
    """Whether the rows are few, small and alike enough for one call."""
    prefixes = [row.prefix for row in rows]
    call = Call(tuple(rows))
    return (
        len({kind_of(row) for row in rows}) == 1
        and len(call.items) <= budget.samples
        and call.tokens <= budget.tokens
        and len(rows) * max(prefixes) <= MAX_PADDING * sum(prefixes)
    )
