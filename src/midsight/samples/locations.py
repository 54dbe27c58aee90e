"""Where an image is, in a table or on the web: small enough to keep for every row, enough to read the image later."""

from __future__ import annotations

from dataclasses import dataclass

from midsight.buckets.path import Place


@dataclass(frozen=True, slots=True)
class TextLocation:
    """A row of a JSONL, JSON, CSV or TSV file."""

    file: Place
    """The file."""
    offset_bytes: int
    """Where the row begins in the file."""
    length_bytes: int
    """How long the row is."""
    number: int
    """Line of the file, or element of the JSON array, from 1; used in messages."""
    columns: tuple[str, ...] = ()
    """Header of a CSV or TSV file; empty for JSON."""
    delimiter: str = ""
    """Separator between two cells of CSV or TSV; empty for JSON."""


@dataclass(frozen=True, slots=True)
class TableLocation:
    """A row of a Parquet file or of an Arrow stream file."""

    file: Place
    """The file."""
    group: int
    """Parquet: index of the row group, from 0. Arrow: byte offset of the record batch."""
    row: int
    """Row in the group, from 0."""
    number: int
    """Row of the whole table, from 1; used in messages."""


@dataclass(frozen=True, slots=True)
class TarLocation:
    """A row of a WebDataset shard."""

    file: Place
    """The tar file."""
    number: int
    """Row of the whole table, from 1; used in messages."""
    images: tuple[tuple[str, int, int], ...]
    """For each image its column, and its offset and length in the file, in bytes."""


RowLocation = TextLocation | TableLocation | TarLocation
"""Where a row is."""


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An encoded image inside a table; samples on the same image share this value."""

    location: RowLocation
    """The first row that holds the image."""
    column: str
    """The image's column."""
    index: int
    """Index among the images of the cell, from 0."""
    reference: str
    """`sha256:` and 16 hex digits of the image's bytes; compared when the image is read again."""

    def __str__(self) -> str:
        file = self.location.file
        if not isinstance(self.location, TextLocation):
            unit = "row"
        else:
            unit = "element" if file.suffix.lower() == ".json" else "line"
        return f"{self.reference} ({file}, {unit} {self.location.number}, column {self.column!r})"


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image on the web; it is downloaded when it is decoded."""

    url: str
    """Address that begins with http:// or https://."""

    def __str__(self) -> str:
        return self.url
