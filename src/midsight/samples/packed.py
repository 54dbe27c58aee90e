"""The samples of a table, packed: of millions of rows each is a few dozen bytes until it is asked for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from midsight.samples.sample import ImageSource, Sample, SampleKey

_as_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_from_text = json.JSONDecoder().decode


class PackedSamples(Sequence[Sample]):
    """Samples whose extras are JSON values. They are made anew each time, and share images and their references."""

    def __init__(self) -> None:
        self._texts = bytearray()
        self._begins = array("q")
        self._middles = array("q")
        self._indices = array("q")
        self._references: list[str] = []
        self._images: list[tuple[ImageSource, ...]] = []

    def append(self, sample: Sample) -> None:
        """Adds a sample behind the others."""
        self._begins.append(len(self._texts))
        self._texts += sample.sample_id.encode("utf-8", "surrogatepass")
        self._middles.append(len(self._texts))
        values = [sample.question, sample.reference_answers, sample.extras]
        self._texts += _as_text(values).encode("utf-8", "surrogatepass")
        self._indices.append(sample.input_index)
        self._references.append(sample.image)
        self._images.append(sample.images)

    def keys(self) -> Iterator[SampleKey]:
        """Of each sample what says whose it is, much quicker than the samples."""
        for place, (index, reference) in enumerate(zip(self._indices, self._references, strict=True)):
            sample_id = self._sample_id(place)
            yield SampleKey(sample_id, index, reference or sample_id)

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

    def _sample_id(self, place: int) -> str:
        return self._texts[self._begins[place] : self._middles[place]].decode("utf-8", "surrogatepass")

    def _unpack(self, place: int) -> Sample:
        end = self._begins[place + 1] if place + 1 < len(self) else len(self._texts)
        text = self._texts[self._middles[place] : end].decode("utf-8", "surrogatepass")
        question, answers, extras = _from_text(text)
        return Sample(
            sample_id=self._sample_id(place),
            input_index=self._indices[place],
            images=self._images[place],
            question=question,
            image=self._references[place],
            reference_answers=tuple(answers),
            extras=extras,
        )


def keys_of(samples: Sequence[Sample]) -> Iterator[SampleKey]:
    """The keys of samples, packed or not."""
    if isinstance(samples, PackedSamples):
        return samples.keys()
    return (SampleKey(sample.sample_id, sample.input_index, sample.image_key) for sample in samples)
