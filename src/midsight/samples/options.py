"""The options for opening a dataset, as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict

from midsight.buckets.path import Place

ResolvedOptions = Mapping[str, str | bool | None]
"""The options that a dataset was read with: field of DatasetOptions -> the value in use."""


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """Which columns, rows and images of a dataset are used.

    Args:
        images: Folder, or its address, that image paths start from and must stay inside. Default: the table's own
            folder.
        image_column: Column of the images, or several, in order; or a pattern of paths like `{image_id:012}.jpg`.
            Default: `image`, or the columns of a known benchmark, or the first of the usual names.
        question_column: Column of the questions. Default: `question`, or the one of a known benchmark, or the first of
            the usual names.
        answer_column: Column of the reference answers. Default: the one of a known benchmark, else `answer` or
            `answers` if present.
        id_column: Column of the sample ids, which must be unique; `none` gives rows ids of their own. Default: the one
            of a known benchmark, else `id` if present, unless it repeats.
        answers_from: File with the reference answers, joined to the rows by the column `on`. Default: none.
        on: Column that data and `answers_from` have in common, or `COLUMN=COLUMN` if it has two names. Default: none.
        question: Question to ask about every image of a folder, or of a table without questions. Default: none.
        split: Split to read; required if the dataset has several.
        allow_urls: Accept http and https addresses as images, and download each image when it is decoded. Default:
            False.
        follow_links: Follow links to files and folders outside the folder of the images. Default: False.
    """

    images: str | Place | None = None
    image_column: str | Sequence[str] | None = None
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    answers_from: str | Path | None = None
    on: str | None = None
    question: str | None = None
    split: str | None = None
    allow_urls: bool = False
    follow_links: bool = False


class DatasetKeywords(TypedDict, total=False):
    """The fields of DatasetOptions as keyword arguments."""

    images: str | Place | None
    image_column: str | Sequence[str] | None
    question_column: str | None
    answer_column: str | None
    id_column: str | None
    answers_from: str | Path | None
    on: str | None
    question: str | None
    split: str | None
    allow_urls: bool
    follow_links: bool


DEFAULT_OPTIONS = DatasetOptions()
NOT_RECORDED = ("answers_from", "on", "follow_links")
"""Options that run.json does not hold."""


def resolved_options(
    options: DatasetOptions, *, images: Place | None = None, columns: Mapping[str, str | None] | None = None
) -> ResolvedOptions:
    """The options that a run records, with the values in use: the `images` folder as an absolute path or address.

    `columns` are by option name. The content of `answers_from` counts as content of the dataset, and a link that is not
    followed is a failure.
    """
    folder = None if images is None else str(images.resolve())
    resolved = {**asdict(options), "images": folder, **(columns or {})}
    return {name: value for name, value in resolved.items() if name not in NOT_RECORDED}
