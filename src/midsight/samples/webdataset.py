"""WebDataset shards as rows: the members of a tar file whose names differ in the suffix only are one row."""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from midsight.errors import MidsightError, first_line
from midsight.samples.columnar import joint_sha256
from midsight.samples.folders import IMAGE_SUFFIXES
from midsight.samples.json_rows import read_cells
from midsight.samples.locations import TarLocation
from midsight.samples.rows import NOT_UTF_8, Row, Table

KEY = "__key__"
"""The column of the name that a row's members share, as WebDataset calls it."""
TEXT_SUFFIXES = ("txt", "text", "cls")
MAX_MEMBER_BYTES = 256_000_000
"""Longest member that is read; a row with a longer one fails."""


def open_tar(path: Path, files: Sequence[Path], root: Path, limit: int | None) -> Table:
    """The rows of tar files, one file after the other; raises MidsightError if they hold none."""
    columns: dict[str, None] = {KEY: None}
    images: dict[str, None] = {}
    for row in itertools.islice(_rows(files, ()), limit):
        columns.update(dict.fromkeys(row.cells))
        if isinstance(row.location, TarLocation):
            images.update(dict.fromkeys(name for name, _, _ in row.location.images))
    if not images:
        raise MidsightError(f"{path} holds no images; the members of a row are named like 0001.jpg and 0001.json.")
    return Table(
        path, "tar", "row", (*columns, *images), lambda: joint_sha256(files), lambda chosen: _rows(files, chosen),
        root, frozenset(images), id_column=KEY, image_columns=tuple(sorted(images, key=_natural)),
    )  # fmt: skip


def read_member(location: TarLocation, column: str) -> bytes:
    """The bytes of one image, read again."""
    offset, length = next((offset, length) for name, offset, length in location.images if name == column)
    with location.file.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def _rows(files: Sequence[Path], images: Collection[str]) -> Iterator[Row]:
    numbers = itertools.count(1)
    for path in files:
        try:
            with tarfile.open(path, "r:") as archive, path.open("rb") as file:
                members = (member for member in archive if member.isreg() and not _is_hidden(member.name))
                groups = itertools.groupby(members, lambda member: _split_name(member.name)[0])
                for in_file, (key, group) in enumerate(groups, start=1):
                    row = _row(path, file, key, list(group), next(numbers), images)
                    yield replace(row, place=f"{path}, row {in_file}")
        except (tarfile.TarError, OSError) as error:
            raise MidsightError(f"{path} cannot be read: {first_line(error)}; copy or download it again.") from error


def _row(
    path: Path, file: BinaryIO, key: str, members: Sequence[tarfile.TarInfo], number: int, images: Collection[str]
) -> Row:
    cells: dict[str, Any] = {KEY: key}
    found: list[tuple[str, int, int]] = []
    for member in members:
        suffix = _split_name(member.name)[1]
        is_image = f".{suffix}".endswith(IMAGE_SUFFIXES)
        if is_image:
            found.append((suffix, member.offset_data, member.size))
        name, _, last = suffix.rpartition(".")
        if not (suffix in images if is_image else suffix == "json" or last in TEXT_SUFFIXES):
            continue
        if member.size > MAX_MEMBER_BYTES:
            return Row(number, key, {}, f"{member.name!r} has more than {MAX_MEMBER_BYTES:,} bytes.")
        file.seek(member.offset_data)
        data = file.read(member.size)
        if is_image:
            cells[suffix] = data
        elif suffix == "json":
            values, problem = read_cells(data)
            if problem:
                return Row(number, key, {}, f"of {member.name!r}, {problem}")
            cells = {**values, **cells}
        else:
            try:
                cells[name or suffix] = data.decode("utf-8").strip()
            except UnicodeDecodeError:
                return Row(number, key, {}, f"of {member.name!r}, {NOT_UTF_8}")
    return Row(number, key, cells, "", TarLocation(path, number, tuple(found)))


def _split_name(name: str) -> tuple[str, str]:
    """Key and suffix: the suffix begins after the first point of the file's name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return folder + slash + stem, suffix.lower()


def _natural(suffix: str) -> list[int | str]:
    """Sorts `2.png` before `10.png`."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", suffix)]


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")
