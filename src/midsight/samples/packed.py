"""The samples of a table in little memory: a row takes a few dozen bytes until it is used."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from midsight.samples.sample import ImageSource, Sample, SampleKey

_as_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_from_text = json.JSONDecoder().decode


class PackedSamples(Sequence[Sample]):
    """A read-only sequence of samples, except for `append`; their extras must be JSON values.

    Each access makes a new Sample. Images and image references are shared, not copied.
    """

    def __init__(self) -> None:
        self._texts = bytearray()
        self._starts = array("q")
        self._id_ends = array("q")
        self._indices = array("q")
        self._references: list[str] = []
        self._images: list[tuple[ImageSource, ...]] = []

    def append(self, sample: Sample) -> None:
        """Adds a sample at the end."""
        self._starts.append(len(self._texts))
        self._texts += sample.sample_id.encode("utf-8", "surrogatepass")
        self._id_ends.append(len(self._texts))
        values = [sample.question, sample.reference_answers, sample.extras]
        self._texts += _as_text(values).encode("utf-8", "surrogatepass")
        self._indices.append(sample.input_index)
        self._references.append(sample.image)
        self._images.append(sample.images)

    def keys(self) -> Iterator[SampleKey]:
        """The key of each sample, without unpacking the sample."""
        for position, (index, reference) in enumerate(zip(self._indices, self._references, strict=True)):
            sample_id = self._sample_id(position)
            yield SampleKey(sample_id, index, reference or sample_id)

    def images_at(self, position: int) -> tuple[ImageSource, ...]:
        """The images of one sample, without unpacking the sample."""
        return self._images[position]

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, position: int) -> Sample: ...
    @overload
    def __getitem__(self, position: slice) -> tuple[Sample, ...]: ...
    def __getitem__(self, position: int | slice) -> Sample | tuple[Sample, ...]:
        chosen = range(len(self))[position]
        return self._unpack(chosen) if isinstance(chosen, int) else tuple(map(self._unpack, chosen))

    def __iter__(self) -> Iterator[Sample]:
        return map(self._unpack, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(sample == theirs for sample, theirs in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def _sample_id(self, position: int) -> str:
        return self._texts[self._starts[position] : self._id_ends[position]].decode("utf-8", "surrogatepass")

    def _unpack(self, position: int) -> Sample:
        end = self._starts[position + 1] if position + 1 < len(self) else len(self._texts)
        text = self._texts[self._id_ends[position] : end].decode("utf-8", "surrogatepass")
        question, answers, extras = _from_text(text)
        return Sample(
            sample_id=self._sample_id(position),
            input_index=self._indices[position],
            images=self._images[position],
            question=question,
            image=self._references[position],
            reference_answers=tuple(answers),
            extras=extras,
        )


def images_at(samples: Sequence[Sample], position: int) -> tuple[ImageSource, ...]:
    """The images of one sample, packed or not."""
    return samples.images_at(position) if isinstance(samples, PackedSamples) else samples[position].images


def keys_of(samples: Sequence[Sample]) -> Iterator[SampleKey]:
    """The key of each sample, packed or not."""
    if isinstance(samples, PackedSamples):
        return samples.keys()
    return (SampleKey(sample.sample_id, sample.input_index, sample.image_key) for sample in samples)
