"""The token layout of a prompt: where its image tokens, its question and its end are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from midsight.errors import SampleError


@dataclass(frozen=True)
class Span:
    """A half-open range of token indices."""

    start: int
    """First index."""
    stop: int
    """One past the last index."""

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"Span({self.start}, {self.stop}) is not a range; start must not exceed stop.")

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TokenLayout:
    """The named spans of one row of token ids: image, question, prompt end.

    Indices count from the start of the row, so padding on the left shifts them all.
    """

    prompt: Span
    """Every token that is not padding."""
    image: tuple[Span, ...]
    """The runs of image tokens, in order: one for each image, or several if an image's span has holes."""
    question: Span
    """The tokens of the user's text."""

    def __post_init__(self) -> None:
        inside = [*self.image, self.question]
        if not len(self.prompt) or any(s.start < self.prompt.start or s.stop > self.prompt.stop for s in inside):
            raise ValueError(f"{self} has a span outside its prompt.")
        if any(a.stop > b.start for a, b in itertools.pairwise(self.image)):
            raise ValueError(f"{self} has image spans that overlap or are out of order.")

    @property
    def image_tokens(self) -> int:
        """How many tokens stand for images."""
        return sum(map(len, self.image))

    @property
    def vision_token(self) -> int:
        """Index of the last image token; raises SampleError if the prompt has no image."""
        if not self.image_tokens:
            raise SampleError("The prompt has no image token; midsight needs at least one image per sample.")
        return self.image[-1].stop - 1

    @property
    def query_token(self) -> int:
        """Index of the last token of the prompt."""
        return self.prompt.stop - 1

    def image_indices(self) -> np.ndarray:
        """Indices of all image tokens, int64 [image_tokens]."""
        if not self.image:
            return np.empty(0, dtype=np.int64)
        return np.concatenate([np.arange(span.start, span.stop, dtype=np.int64) for span in self.image])

    def shifted(self, offset: int) -> TokenLayout:
        """The same layout in a row with `offset` tokens of padding before it."""

        def move(span: Span) -> Span:
            return Span(span.start + offset, span.stop + offset)

        return TokenLayout(move(self.prompt), tuple(map(move, self.image)), move(self.question))


def runs_of(token_ids: Sequence[int], token_id: int) -> tuple[Span, ...]:
    """The maximal runs of `token_id` in `token_ids`, in order."""
    is_token = np.asarray(token_ids) == token_id
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_token, [False]]).astype(np.int8)))
    return tuple(Span(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True))
