"""Folders of images."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePath

from midsight.buckets.path import BucketPath, Place
from midsight.errors import MidsightError, counted
from midsight.samples.rows import Row, Table

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip


def is_folder(path: Place) -> bool:
    """Whether the path is a folder; raises MidsightError if it cannot be read, as with a name that is too long."""
    try:
        # who may read an object need not be allowed to list its folder
        return path.is_dir() if isinstance(path, Path) else not path.is_file() and path.is_dir()
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def image_folder(path: Place, question: str, *, follow_links: bool = False) -> Table:
    """A table with every image below a folder, each with the same question; raises MidsightError without images.

    Images are recognised by suffix and sorted by path. Names that begin with a dot are left out, and links to
    folders unless `follow_links`. A note counts what is left out.
    """
    left_out: Counter[str] = Counter()
    found = sorted(
        _images_in_bucket(path, left_out)
        if isinstance(path, BucketPath)
        else _images_on_disk(path, left_out, follow_links=follow_links)
    )
    note = describe_left_out(path, left_out)
    if not found:
        raise MidsightError(f"{path} contains no image; image files end in {', '.join(IMAGE_SUFFIXES)}. {note}".strip())
    digest = hashlib.sha256(json.dumps([question, found]).encode()).hexdigest()

    def rows(_: object) -> Iterator[Row]:
        for number, name in enumerate(found, start=1):
            yield Row(number, name, {"image": name, "question": question})

    notes = (note,) if note else ()
    return Table(path, "images", "row", ("image", "question"), lambda: digest, rows, path, notes=notes)


def _images_in_bucket(path: BucketPath, left_out: Counter[str]) -> Iterator[str]:
    for file in path.rglob():
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts):
            left_out["hidden"] += 1
        elif name.name.lower().endswith(IMAGE_SUFFIXES):
            yield str(name)
        else:
            left_out[_kind(name.name)] += 1


def _images_on_disk(path: Path, left_out: Counter[str], *, follow_links: bool) -> Iterator[str]:
    walked: set[Path] = set()
    for folder, subfolders, names in os.walk(path, followlinks=follow_links):
        here = Path(folder)
        if follow_links and here.resolve() in walked:  # a link to a folder above it
            subfolders.clear()
            continue
        walked.add(here.resolve() if follow_links else here)
        left_out["hidden"] += sum(name.startswith(".") for name in (*names, *subfolders))
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        left_out["link to a folder"] += sum((here / name).is_symlink() for name in subfolders if not follow_links)
        for name in names:
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                yield (here / name).relative_to(path).as_posix()
            elif not name.startswith("."):
                left_out[_kind(name)] += 1


def _kind(name: str) -> str:
    """How a note calls files with the suffix of this one."""
    return f"*{PurePath(name).suffix.lower()}" if PurePath(name).suffix else "without suffix"


def describe_left_out(path: Place, left_out: Counter[str]) -> str:
    """How many files a folder leaves out, by reason; empty if it leaves out none."""
    counts = +left_out
    if not counts:
        return ""
    plural = {"link to a folder": "links to folders"}
    shown = ", ".join(counted(count, reason, plural.get(reason, reason)) for reason, count in counts.most_common(6))
    others = counts.total() - sum(count for _, count in counts.most_common(6))
    more = f", {counted(others, 'other')}" if others else ""
    links = " follow_links follows links." if counts["link to a folder"] else ""
    return f"{path} leaves out {sum(counts.values()):,} of its files: {shown}{more}.{links}"
