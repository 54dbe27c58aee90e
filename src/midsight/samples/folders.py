"""Folders of images."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from midsight.errors import MidsightError, counted
from midsight.samples.rows import Row, Table

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif",
)  # fmt: skip


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; raises MidsightError if it cannot be read, as with a name that is too long."""
    try:
        return path.is_dir()
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def image_folder(path: Path, question: str, *, follow_links: bool = False) -> Table:
    """A table with every image below a folder, each with the same question; raises MidsightError without images.

    Images are recognised by suffix and sorted by path. Names that begin with a dot are left out, and links to
    folders unless `follow_links`. A note counts what is left out.
    """
    found: list[str] = []
    left_out: Counter[str] = Counter()
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
                found.append((here / name).relative_to(path).as_posix())
            elif not name.startswith("."):
                left_out[f"*{Path(name).suffix.lower()}" if Path(name).suffix else "without suffix"] += 1
    note = describe_left_out(path, left_out)
    if not found:
        raise MidsightError(f"{path} contains no image; image files end in {', '.join(IMAGE_SUFFIXES)}. {note}".strip())
    found.sort()
    digest = hashlib.sha256(json.dumps([question, found]).encode()).hexdigest()

    def rows(_: object) -> Iterator[Row]:
        for number, name in enumerate(found, start=1):
            yield Row(number, name, {"image": name, "question": question})

    notes = (note,) if note else ()
    return Table(path, "images", "row", ("image", "question"), lambda: digest, rows, path, notes=notes)


def describe_left_out(path: Path, left_out: Counter[str]) -> str:
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
