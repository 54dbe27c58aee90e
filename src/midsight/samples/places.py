"""Where an image is kept, in a table or on the web: small enough to hold for every row, enough to read it later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class TextPlace:
    """A record of a JSONL, JSON, CSV or TSV file."""

    file: Path
    """The file."""
    offset_bytes: int
    """Where the record begins."""
    length_bytes: int
    """How long it is."""
    number: int
    """Its line, or its element of a JSON array, from 1: for messages."""
    columns: tuple[str, ...] = ()
    """The header of a CSV or TSV file; a JSON object has none."""
    delimiter: str = ""
    """What stands between two cells; nothing in JSON."""


@dataclass(frozen=True, slots=True)
class TablePlace:
    """A row of a Parquet file or of an Arrow stream file."""

    file: Path
    """The file."""
    group: int
    """Parquet: the row group, from 0. Arrow: the byte at which the record batch begins."""
    row: int
    """Row in the group, from 0."""
    number: int
    """Row of the table, from 1: for messages."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An encoded image inside a table; samples that ask about it share this value."""

    place: TextPlace | TablePlace
    """The first row that has it."""
    column: str
    """Its column."""
    index: int
    """Which of the cell's images, from 0."""
    reference: str
    """`sha256:` and 16 hex digits of its bytes, which are compared when it is read again."""

    def __str__(self) -> str:
        unit = "row" if isinstance(self.place, TablePlace) else "line" if self.place.columns else "record"
        return f"{self.reference} ({self.place.file}, {unit} {self.place.number}, column {self.column!r})"


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image on the web; it is downloaded when it is decoded."""

    url: str
    """With http or https."""

    def __str__(self) -> str:
        return self.url
