"""The plan: which samples go through the model together, and how.

Questions on one image share a prefix. Prompts of similar length share a call, which is as large as the budget allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from midsight.extraction.budget import Budget, CallSize
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import ResolvedRequest

MASK_BYTES = 10
"""Bytes for each masked token and each token that it may read, while the mask is made."""
MAX_PADDING, MAX_PADDING_WITHOUT_ANSWERS = 1.25, 1.05
"""Largest ratio of a call's prefix tokens with padding to those without; above it, a second call is cheaper.

Without answers a second call costs little, because no decode step reads the weights again."""


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
    images_read_ahead: bool
    """Whether an image's tokens read each other in both directions, so that whole prompts need a mask."""

    @property
    def questions(self) -> int:
        """Number of tokens after the prefix, without answers."""
        return sum(len(item.prompt.token_ids) - self.prefix for item in self.items)

    @property
    def suffix(self) -> int:
        """Number of tokens after the prefix, all answers included."""
        return self.questions + len(self.items) * self.answer_tokens

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
    def size(self) -> CallSize:
        """What a budget needs to know."""
        longest = max(row.prefix for row in self.rows) + max(row.suffix for row in self.rows)
        return CallSize(
            samples=sum(len(row.items) for row in self.rows),
            tokens=len(self.rows) * longest,
            unpadded=sum(row.prefix + row.suffix for row in self.rows),
        )

    @property
    def mask_bytes(self) -> int:
        """Memory that the largest attention mask takes, which grows with the square of the masked tokens.

        Causal prompts in rows of their own need no mask.
        """
        prefix, new = max(row.prefix for row in self.rows), max(row.questions for row in self.rows)
        at_once = prefix if self.shares_prefixes else prefix + new
        pairs = at_once**2 if self.rows[0].images_read_ahead else 0
        if self.shares_prefixes:
            pairs = max(pairs, new * (prefix + new))
        return MASK_BYTES * len(self.rows) * pairs

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
    for items in groups.values():
        shareable, long_factors = may_share(items[0], request), is_long(items[0], request)
        for together in [items] if shareable else [[item] for item in items]:
            prefix = items[0].prefix_length if shareable else len(together[0].prompt.token_ids)
            reads_ahead = request.images_read_ahead
            rows.append(CacheRow(tuple(together), prefix, request.answer_tokens, long_factors, reads_ahead))
    return sort_rows(rows)


def sort_rows(rows: Sequence[CacheRow]) -> list[CacheRow]:
    """The rows, one kind after the other; within a kind, short prefixes come first."""
    return sorted(rows, key=lambda row: (*kind_of(row), row.prefix))


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


def plan_calls(waiting: list[CacheRow], budget: Budget, *, last: bool = True) -> Iterator[Call]:
    """Takes calls from the rows that wait, which are in order. The budget at that moment decides the size of each.

    An image's questions stay together if they fit. Unless these are the `last` rows, those of a call that is not full
    go on waiting, because more of their kind may come.
    """
    left: list[CacheRow] = []
    while waiting:
        rows, is_full = take_rows(waiting, budget)
        if is_full or last:
            yield Call(tuple(rows))
        else:
            left += rows
    waiting[:] = left


def take_rows(waiting: list[CacheRow], budget: Budget) -> tuple[list[CacheRow], bool]:
    """Takes the rows of the next call out of `waiting`; returns them, and whether the call is full.

    It is not full if it ends only because no more rows of its kind wait.
    """
    taken: list[CacheRow] = []
    while waiting:
        row = waiting[0]
        limit = most_together(row, budget)
        if len(row.items) > limit:
            waiting[:1] = row.pieces(limit)
        elif taken and kind_of(row) != kind_of(taken[0]):
            break
        elif taken and not fits([*taken, row], budget):
            return taken, True
        else:
            taken.append(waiting.pop(0))
    return taken, Call(tuple(taken)).size.samples >= budget.samples


def most_together(row: CacheRow, budget: Budget) -> int:
    """Maximum number of the row's samples in one call: what the budget allows if they fit in memory, else half."""
    call = Call((row,))
    size = call.size
    fits_in_memory = budget.load(size) <= budget.tokens and call.mask_bytes <= budget.free_bytes
    return min(budget.most_samples, size.samples if fits_in_memory else max(1, size.samples // 2))


def fits(rows: Sequence[CacheRow], budget: Budget) -> bool:
    """Whether rows of one kind are few, small and alike enough for one call."""
    prefixes = [row.prefix for row in rows]
    padding = MAX_PADDING if rows[0].answer_tokens else MAX_PADDING_WITHOUT_ANSWERS
    call = Call(tuple(rows))
    in_memory = budget.holds(call.size) and call.mask_bytes <= budget.free_bytes
    return in_memory and len(rows) * max(prefixes) <= padding * sum(prefixes)
