"""WebDataset shards as rows: the members of a tar file whose names differ in the suffix only are one row.

The members of a row are found wherever they are in the file.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NamedTuple

from midsight.buckets.blocks import open_in_blocks, read_span
from midsight.buckets.path import Place
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
MEMBERS_LOOKED_AT = 20_000
"""Members of a tar file that are looked at if its beginning has to decide."""
TEXT_BYTES_LOOKED_AT = 20_000_000
"""Size of those together that are no images."""


class _Member(NamedTuple):
    """A file inside a tar file."""

    suffix: str
    """What follows the key, in lower case."""
    name: str
    """Its whole name."""
    offset: int
    """Where its bytes begin in the tar file."""
    size: int
    """Number of its bytes."""


def open_tar(path: Place, files: Sequence[Place], root: Place, limit: int | None, *, beginning: bool = False) -> Table:
    """The rows of tar files, one file after the other; raises MidsightError if they hold none.

    With `beginning`, the first members of each file decide, and the table has no columns if not all kinds are there.
    """
    columns: dict[str, None] = {KEY: None}
    images: dict[str, None] = {}
    for row in itertools.islice(_rows(files, (), MEMBERS_LOOKED_AT if beginning else None), limit):
        columns.update(dict.fromkeys(row.cells))
        if isinstance(row.location, TarLocation):
            images.update(dict.fromkeys(name for name, _, _ in row.location.images))
    if beginning and (not images or len(columns) == 1):
        return Table(path, "tar", "row", (), str, lambda _: iter(()), root)
    if not images:
        raise MidsightError(f"{path} holds no images; the members of a row are named like 0001.jpg and 0001.json.")
    return Table(
        path, "tar", "row", (*columns, *images), lambda: joint_sha256(files), lambda chosen: _rows(files, chosen),
        root, frozenset(images), id_column=KEY, image_columns=tuple(sorted(images, key=_natural)),
    )  # fmt: skip


def read_member(location: TarLocation, column: str) -> bytes:
    """The bytes of one image, read again."""
    offset, length = next((offset, length) for name, offset, length in location.images if name == column)
    return read_span(location.file, offset, length)


def _rows(files: Sequence[Place], images: Collection[str], most_members: int | None = None) -> Iterator[Row]:
    numbers = itertools.count(1)
    for path in files:
        try:
            with open_in_blocks(path) as file:
                for in_file, (key, members) in enumerate(_members_of_rows(path, most_members), start=1):
                    row = _row(path, file, key, members, next(numbers), images)
                    yield replace(row, place=f"{path}, row {in_file}")
        except (tarfile.TarError, OSError) as error:
            raise MidsightError(f"{path} cannot be read: {first_line(error)}; copy or download it again.") from error


def _members_of_rows(path: Place, most: int | None) -> list[tuple[str, list[_Member]]]:
    """The key and the members of each row, in the order in which keys first appear; of the first `most` members.

    With `most`, fewer are taken where their texts are long.
    A row's members need not be next to each other. If they are, a key may come again, as another row.
    """
    groups: dict[str, list[list[_Member]]] = {}
    previous, text_bytes = None, 0
    with open_in_blocks(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in itertools.islice(archive, most):
            if member.isreg() and not _is_hidden(member.name):
                key, suffix = _split_name(member.name)
                if key != previous:
                    groups.setdefault(key, []).append([])
                groups[key][-1].append(_Member(suffix, member.name, member.offset_data, member.size))
                previous = key
            text_bytes += 0 if member.name.lower().endswith(IMAGE_SUFFIXES) else member.size
            if most is not None and text_bytes > TEXT_BYTES_LOOKED_AT:
                break
            archive.members = []  # pyright: ignore[reportAttributeAccessIssue]  (it would keep all of them)
    return [(key, members) for key, group in groups.items() for members in _joined(group)]


def _joined(groups: list[list[_Member]]) -> list[list[_Member]]:
    """The members of one key by row: one row if each suffix comes once, else one for each group of equal suffixes.

    All are one row, which then fails, if it is not clear which belong together.
    """
    joined = [*itertools.chain.from_iterable(groups)]
    are_alike = len({frozenset(member.suffix for member in group) for group in groups}) == 1
    return groups if _repeats(joined) and are_alike and not any(map(_repeats, groups)) else [joined]


def _repeats(members: Sequence[_Member]) -> bool:
    return len({member.suffix for member in members}) < len(members)


def _row(
    path: Place, file: BinaryIO, key: str, members: Sequence[_Member], number: int, images: Collection[str]
) -> Row:
    if _repeats(members):
        repeated = next(one.name for one in members if sum(one.suffix == other.suffix for other in members) > 1)
        return Row(number, key, {}, f"{repeated!r} comes several times; give every sample a name of its own.")
    cells: dict[str, Any] = {KEY: key}
    found: list[tuple[str, int, int]] = []
    for suffix, name_in_tar, offset, size in members:
        is_image = f".{suffix}".endswith(IMAGE_SUFFIXES)
        if is_image:
            found.append((suffix, offset, size))
        name, _, last = suffix.rpartition(".")
        if not (suffix in images if is_image else suffix == "json" or last in TEXT_SUFFIXES):
            continue
        if size > MAX_MEMBER_BYTES:
            return Row(number, key, {}, f"{name_in_tar!r} has more than {MAX_MEMBER_BYTES:,} bytes.")
        file.seek(offset)
        data = file.read(size)
        if is_image:
            cells[suffix] = data
        elif suffix == "json":
            values, problem = read_cells(data)
            if problem:
                return Row(number, key, {}, f"of {name_in_tar!r}, {problem}")
            cells = {**values, **cells}
        else:
            try:
                cells[name or suffix] = data.decode("utf-8").strip()
            except UnicodeDecodeError:
                return Row(number, key, {}, f"of {name_in_tar!r}, {NOT_UTF_8}")
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
