"""What one extracted sample leaves. The columns of a run are derived from these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NewType

import numpy as np

from midsight.errors import MidsightError
from midsight.taps.shown import as_html, in_lines, shorten
from midsight.taps.tap import Position, Tap

VISION_ONLY = "vision_only_representation"
PROCESSOR_POOLED_PIXELS = "processor_pooled_pixels"

FinishReason = Literal["stop", "length", "abstained"]
"""Why decoding ended: a stop token, or the limit on new tokens; or that the risk was too high to begin it."""
Double = NewType("Double", float)
"""A number that is stored as float64, because it is compared with a threshold."""

ONLY_WITH = "only_with"
"""Key of a field's metadata: the column is only in runs with one of these, `answers` or `risk`."""
ANSWER = {ONLY_WITH: ("answers",)}
FIRST_TOKEN = {ONLY_WITH: ("answers", "risk")}
RISK = {ONLY_WITH: ("risk",)}
UNKNOWN_IF_IMPORTED = {"unknown_if_imported": True}
"""Field metadata: None in imported runs, and never in others."""


@dataclass(frozen=True)
class Record:
    """One extracted sample; each field except `vectors` is a column of the run."""

    sample_id: str
    """Unique in its dataset."""
    input_index: int
    """Row in the dataset, from 0."""
    image_id: str
    """SHA-256 of the decoded RGB pixels and their size; for several images, SHA-256 of their ids."""
    image: str
    """Path or address of the image as the dataset gives it; for several images a JSON list."""
    question: str
    """The user's text, without template."""
    reference_answers: tuple[str, ...]
    """The correct answers according to the dataset."""
    extras: Mapping[str, Any]
    """Every other input column, each a column of the run under its own name."""
    answer: str | None = field(default=None, metadata=ANSWER)
    """Greedy decode, special tokens skipped; None if the model abstained."""
    answer_token_ids: tuple[int, ...] | None = field(default=None, metadata=ANSWER)
    """Generated token ids, the stop token included."""
    answer_logprobs: tuple[float, ...] | None = field(default=None, metadata=ANSWER)
    """Log-softmax of the raw logits, computed in float64, one per generated token."""
    finish_reason: FinishReason | None = field(default=None, metadata=ANSWER)
    """Why decoding ended."""
    first_token_entropy: float | None = field(default=None, metadata=FIRST_TOKEN)
    """Entropy of the first token's distribution, in nats."""
    first_token_top_ids: tuple[int, ...] | None = field(default=None, metadata=FIRST_TOKEN)
    """Ids of the ten likeliest first tokens, likeliest first."""
    first_token_top_logprobs: tuple[float, ...] | None = field(default=None, metadata=FIRST_TOKEN)
    """Their log-probabilities."""
    risk: Double | None = field(default=None, metadata=RISK)
    """Probability, by a probe and before the answer, of what `risks` in run.json describes."""
    prompt_tokens: int = field(default=0, metadata=UNKNOWN_IF_IMPORTED)
    """Tokens of the prompt, with image tokens, without padding."""
    image_tokens: int = field(default=0, metadata=UNKNOWN_IF_IMPORTED)
    """Tokens of the prompt that stand for images."""
    vision_token_index: int = field(default=0, metadata=UNKNOWN_IF_IMPORTED)
    """Index in the prompt of the last image token, from 0."""
    query_token_index: int = field(default=0, metadata=UNKNOWN_IF_IMPORTED)
    """Index in the prompt of its last token, from 0."""
    vectors: Mapping[str, np.ndarray] = field(default_factory=dict)
    """float32 [width] by column name; each entry is a column. Only in imported runs one may be missing."""

    def __repr__(self) -> str:
        return in_lines(f"Record({self.sample_id!r})", self._facts(), self._widths())

    def _repr_html_(self) -> str:
        return as_html(f"Record {self.sample_id}", self._facts(), self._widths())

    def _facts(self) -> dict[str, str]:
        texts = {"image": self.image or "in memory", "question": self.question, "answer": self.answer}
        shown = {name: shorten(repr(text)) for name, text in texts.items() if text is not None}
        return {**shown, "tokens": f"{self.prompt_tokens:,} of the prompt, {self.image_tokens:,} of them for images"}

    def _widths(self) -> dict[str, int]:
        return {name: len(vector) for name, vector in self.vectors.items()}

    @property
    def vision_only_representation(self) -> np.ndarray:
        """Mean of the vision encoder's feature layer over all useful patches, float32 [vision width].

        Raises MidsightError if it was not extracted, like the properties below.
        """
        return self._vector(VISION_ONLY)

    @property
    def processor_pooled_pixels(self) -> np.ndarray:
        """The processor's pixels averaged over crops, channels and rows, float32 [pixel columns of a crop]."""
        return self._vector(PROCESSOR_POOLED_PIXELS)

    @property
    def vision_token_representation(self) -> dict[int, np.ndarray]:
        """Hidden state at the last image token by decoder layer, each float32 [hidden size]."""
        return self._by_layer("vision_token")

    @property
    def query_token_representation(self) -> dict[int, np.ndarray]:
        """Hidden state at the last prompt token by decoder layer, each float32 [hidden size]."""
        return self._by_layer("query_token")

    @property
    def image_mean_representation(self) -> dict[int, np.ndarray]:
        """Mean hidden state of all image tokens by decoder layer, each float32 [hidden size]."""
        return self._by_layer("image_mean")

    def _vector(self, name: str) -> np.ndarray:
        if name not in self.vectors:
            raise MidsightError(f"{name} was not extracted; this record holds {', '.join(self.vectors)}.")
        return self.vectors[name]

    def _by_layer(self, position: Position) -> dict[int, np.ndarray]:
        taps = [tap for name in self.vectors if (tap := Tap.parse_or_none(name))]
        wanted = [tap for tap in taps if tap.position == position and tap.stage == "layer"]
        if not wanted:
            raise MidsightError(
                f"{position}_representation was not extracted; this record holds {', '.join(self.vectors)}."
            )
        return {tap.layer: self.vectors[str(tap)] for tap in wanted}
