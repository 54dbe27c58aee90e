"""The samples of a table in little memory: a row takes a few dozen bytes until it is used."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from midsight.buckets.path import BucketPath
from midsight.samples.sample import ImageSource, Sample, SampleKey

_as_text = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_from_text = json.JSONDecoder().decode


MOST_FOLDERS = 1000
"""Different beginnings of file names that are kept; samples with others take more memory."""


class PackedSamples(Sequence[Sample]):
    """A read-only sequence of samples, except for `append`; their extras must be JSON values.

    Each access makes a new Sample. A file whose path ends in its reference is kept as the two texts; other images are
    shared, not copied.
    """

    def __init__(self) -> None:
        self._texts = bytearray()
        self._starts = array("q")
        self._id_ends = array("q")
        self._reference_ends = array("q")
        self._indices = array("q")
        self._folders: list[tuple[str, str]] = []
        """Bucket, empty on a disk, and the beginning of a path."""
        self._numbers_of_folders: dict[tuple[str, str], int] = {}
        self._folder_numbers = array("i")
        self._images: dict[int, tuple[ImageSource, ...]] = {}

    def append(self, sample: Sample) -> None:
        """Adds a sample at the end."""
        self._starts.append(len(self._texts))
        self._texts += sample.sample_id.encode("utf-8", "surrogatepass")
        self._id_ends.append(len(self._texts))
        self._texts += sample.image.encode("utf-8", "surrogatepass")
        self._reference_ends.append(len(self._texts))
        values = [sample.question, sample.reference_answers, sample.extras]
        self._texts += _as_text(values).encode("utf-8", "surrogatepass")
        self._indices.append(sample.input_index)
        number = self._number_of_folder(sample)
        if number is None:
            self._images[len(self)] = sample.images
        self._folder_numbers.append(-1 if number is None else number)

    def _number_of_folder(self, sample: Sample) -> int | None:
        """The number of what stands before the reference in the path of the sample's one file; None for others."""
        image = sample.images[0] if len(sample.images) == 1 else None
        if not isinstance(image, Path | BucketPath):
            return None
        bucket, path = image.root if isinstance(image, BucketPath) else "", str(image)
        if not path.endswith(sample.image):
            return None
        folder = bucket, path.removesuffix(sample.image)
        if folder not in self._numbers_of_folders:
            if len(self._folders) == MOST_FOLDERS:
                return None
            self._numbers_of_folders[folder] = len(self._folders)
            self._folders.append(folder)
        return self._numbers_of_folders[folder]

    def keys(self) -> Iterator[SampleKey]:
        """The key of each sample, without unpacking the sample."""
        for position, index in enumerate(self._indices):
            sample_id = self._sample_id(position)
            yield SampleKey(sample_id, index, self._reference(position) or sample_id)

    def images_at(self, position: int) -> tuple[ImageSource, ...]:
        """The images of one sample, without unpacking the sample."""
        number = self._folder_numbers[position]
        if number < 0:
            return self._images[position]
        bucket, folder = self._folders[number]
        path = folder + self._reference(position)
        return (BucketPath(bucket, path.removeprefix(f"{bucket}/")) if bucket else Path(path),)

    def __len__(self) -> int:
        return len(self._folder_numbers)

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
        return self._text(self._starts[position], self._id_ends[position])

    def _reference(self, position: int) -> str:
        return self._text(self._id_ends[position], self._reference_ends[position])

    def _text(self, start: int, end: int) -> str:
        return self._texts[start:end].decode("utf-8", "surrogatepass")

    def _unpack(self, position: int) -> Sample:
        end = self._starts[position + 1] if position + 1 < len(self) else len(self._texts)
        question, answers, extras = _from_text(self._text(self._reference_ends[position], end))
        return Sample(
            sample_id=self._sample_id(position),
            input_index=self._indices[position],
            images=self.images_at(position),
            question=question,
            image=self._reference(position),
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
