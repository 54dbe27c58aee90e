"""The options for opening a dataset, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

ResolvedOptions = Mapping[str, str | bool | None]
"""The options that a dataset was read with: field of DatasetOptions -> the value in use."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Which columns, rows and images of a dataset are used."""

    images: str | Path | None = None
    """Folder that image paths start from and must stay inside. Default: the table's own folder."""
    image_column: str | None = None
    """Column of the images. Default: `image`, or the one of a known benchmark."""
    question_column: str | None = None
    """Column of the questions. Default: `question`, or the one of a known benchmark."""
    answer_column: str | None = None
    """Column of the reference answers. Default: the one of a known benchmark, else `answer` or `answers` if present."""
    id_column: str | None = None
    """Column of the sample ids, which must be unique. Default: the one of a known benchmark, else `id` if present."""
    question: str | None = None
    """Question to ask about every image; makes a folder of images a dataset."""
    split: str | None = None
    """Split to read; required if the dataset has several."""
    allow_urls: bool = False
    """Accept http and https addresses as images, and download each image when it is decoded."""


class DatasetKeywords(TypedDict, total=False):
    """The fields of DatasetOptions as keyword arguments."""

    images: str | Path | None
    image_column: str | None
    question_column: str | None
    answer_column: str | None
    id_column: str | None
    question: str | None
    split: str | None
    allow_urls: bool


DEFAULT_OPTIONS = DatasetOptions()


def resolved_options(
    options: DatasetOptions, *, images: Path | None = None, columns: Mapping[str, str | None] | None = None
) -> ResolvedOptions:
    """All options with the values in use: the `images` folder as an absolute path, `columns` by option name."""
    folder = None if images is None else str(images.resolve())
    return {**asdict(options), "images": folder, **(columns or {})}
