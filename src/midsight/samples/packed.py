"""The samples of a table, packed: of millions of rows each is a few dozen bytes until it is asked for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from midsight.samples.sample import ImageSource, Sample

_as_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_from_text = json.JSONDecoder().decode


class PackedSamples(Sequence[Sample]):
    """Samples whose extras are JSON values. They are made anew each time, and share images and their references."""

    def __init__(self) -> None:
        self._texts = bytearray()
        self._ends = array("q", [0])
        self._indices = array("q")
        self._references: list[str] = []
        self._images: list[tuple[ImageSource, ...]] = []

    def append(self, sample: Sample) -> None:
        """Adds a sample behind the others."""
        values = [sample.sample_id, sample.question, sample.reference_answers, sample.extras]
        self._texts += _as_text(values).encode("utf-8", "surrogatepass")
        self._ends.append(len(self._texts))
        self._indices.append(sample.input_index)
        self._references.append(sample.image)
        self._images.append(sample.images)

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, place: int | slice) -> Sample | tuple[Sample, ...]:
        places = range(len(self))[place]
        return self._unpack(places) if isinstance(places, int) else tuple(map(self._unpack, places))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._unpack, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(mine == its for mine, its in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _unpack(self, place: int) -> Sample:
        text = self._texts[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")
        sample_id, question, answers, extras = _from_text(text)
        return Sample(
            sample_id=sample_id,
            input_index=self._indices[place],
            images=self._images[place],
            question=question,
            image=self._references[place],
            reference_answers=tuple(answers),
            extras=extras,
        )
