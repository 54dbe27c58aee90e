"""Parts: Parquet files in which every byte that a reader uses has a checksum."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import IOBase
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midsight.buckets.path import BucketPath, Place
from midsight.buckets.reading import read_spans
from midsight.errors import DamagedRunError, counted
from midsight.store.files import RUN_JSON
from midsight.store.schema import is_vector

ROW_GROUP_BYTES = 64 * 2**20
"""Maximum size of a row group, uncompressed, unless a single row is larger."""
SMALL_PART_BYTES = 64 * 2**10
"""Size up to which a part in a bucket is read by one request: that takes as long as its footer alone."""
KEPT_BYTES = 128 * 2**20
"""How much of a run's parts is kept in memory for the next column."""


@dataclass(frozen=True)
class PartDigest:
    """Size and checksums of a part.

    Parquet's page checksums do not cover page headers and the footer, where one flipped bit can
    change an encoding and so every number. These checksums do.
    """

    rows: int
    """Rows of the part, at least 1."""
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the whole file, hexadecimal."""
    footer_bytes: int
    """Size of the footer, the last bytes of the file: Parquet metadata, its length and the magic."""
    footer_sha256: str
    """SHA-256 of the footer, hexadecimal."""
    chunk_crc32: tuple[tuple[int, ...], ...]
    """CRC-32 of the bytes of every column chunk, page headers included: [row group][column]."""


class Tails:
    """The ends of a run's parts in a bucket, kept in memory, so that the next column needs fewer requests."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}
        self._room = KEPT_BYTES
        self._keeping = Lock()

    def read(self, path: BucketPath, digest: PartDigest) -> bytes:
        """The end of the part at `path`: its footer, or all of a small part."""
        if (kept := self._kept.get(path.key)) is not None:
            return kept
        start = digest.bytes - digest.footer_bytes if digest.bytes > SMALL_PART_BYTES else 0
        tail = path.read_range(start, digest.bytes)
        with self._keeping:
            if path.key not in self._kept and len(tail) <= self._room:
                self._room -= len(tail)
                self._kept[path.key] = tail
        return tail


def encode_part(table: pa.Table, *, row_group_bytes: int = ROW_GROUP_BYTES) -> pa.Buffer:
    """The rows of `table` as the bytes of a Parquet file."""
    # Half floats are plain, because DuckDB (2.0) and polars (1.34) do not read them with their bytes split.
    vectors = {
        f"{field.name}.list.element": "PLAIN" if field.type.value_type == pa.float16() else "BYTE_STREAM_SPLIT"
        for field in table.schema
        if is_vector(field)
    }
    strings = [path for field in table.schema if (path := _string_path(field)) is not None]
    scalars = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": strings,
        "column_encoding": vectors,
        "write_statistics": scalars,
        "write_page_checksum": True,
    }
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, **options) as writer:
        for rows in _row_groups(table, row_group_bytes):
            writer.write_table(rows, row_group_size=rows.num_rows)
    return sink.getvalue()


def digest_part(data: pa.Buffer) -> PartDigest:
    """The digest of a part's bytes as `encode_part` made them."""
    view = memoryview(data)
    metadata = pq.read_metadata(pa.BufferReader(data))
    footer = view[len(view) - _footer_bytes(metadata) :]
    return PartDigest(
        rows=metadata.num_rows,
        bytes=len(view),
        sha256=hashlib.sha256(view).hexdigest(),
        footer_bytes=len(footer),
        footer_sha256=hashlib.sha256(footer).hexdigest(),
        chunk_crc32=tuple(
            tuple(zlib.crc32(view[_chunk(metadata, group, column)]) for column in range(metadata.num_columns))
            for group in range(metadata.num_row_groups)
        ),
    )


def read_part(
    path: Place,
    digest: PartDigest,
    columns: Sequence[str],
    schema: pa.Schema | None = None,
    *,
    tails: Tails | None = None,
) -> Iterator[pa.Table]:
    """The `columns` of the part at `path`, in that order, one table per row group.

    Reads only the footer and those columns, and decodes exactly the bytes that it compared with
    `digest`. Raises DamagedRunError if they differ or cannot be read, or if the part does not have the columns
    of `schema`, the run's. In a bucket the columns of all row groups are read at the same time; `tails` keeps what the
    next call needs again.
    """
    # Untouched pages of zeros take no memory; only the bytes that are read from the file do.
    image = np.zeros(digest.bytes, np.uint8)
    view = image.data
    footer = slice(digest.bytes - digest.footer_bytes, digest.bytes)
    try:
        if not 8 < digest.footer_bytes <= digest.bytes:
            raise damaged_part(path, f"its record says that its footer has {counted(digest.footer_bytes, 'byte')}")
        with _reading(path, digest, view, tails or Tails()) as (fill, at_once):
            if hashlib.sha256(view[footer]).hexdigest() != digest.footer_sha256:
                raise damaged_part(path, "its footer does not match its SHA-256")
            # On this thread only: if an Arrow thread frees our buffer while Python exits, the process aborts.
            part = pq.ParquetFile(pa.py_buffer(image), page_checksum_verification=True, pre_buffer=False)
            metadata, stored = part.metadata, part.schema_arrow
            _require_shape(path, metadata, digest)
            if schema is not None and not stored.equals(schema):
                raise other_columns(path, schema, stored)
            # Every column of a run has one leaf, so its index in the schema is also its chunk's index.
            leaves = {name: i for i, name in enumerate(stored.names)}
            groups = [{name: _chunk(metadata, group, leaves[name]) for name in columns}
                      for group in range(metadata.num_row_groups)]  # fmt: skip
            if at_once:
                fill([chunk for chunks in groups for chunk in chunks.values()])
            for group, (crcs, chunks) in enumerate(zip(digest.chunk_crc32, groups, strict=True)):
                if not at_once:
                    fill([*chunks.values()])
                for name, chunk in chunks.items():
                    if zlib.crc32(view[chunk]) != crcs[leaves[name]]:
                        raise damaged_part(path, f"its column {name} does not match its checksum in row group {group}")
                yield part.read_row_group(group, columns=list(columns), use_threads=False).select(list(columns))
    except (FileNotFoundError, EOFError, KeyError, pa.ArrowException) as error:
        raise damaged_part(path, f"it cannot be read ({error})") from error
    except OSError as error:
        raise DamagedRunError(
            f"The part {path} cannot be read: {error.strerror or error}; check the disk and its permissions."
        ) from error


def _require_shape(path: Place, metadata: pq.FileMetaData, digest: PartDigest) -> None:
    """Raise DamagedRunError unless the part at `path` has the rows and columns that `digest` speaks of."""
    if metadata.num_rows != digest.rows:
        raise damaged_part(path, f"it has {counted(metadata.num_rows, 'row')} instead of {digest.rows:,}")
    if [len(crcs) for crcs in digest.chunk_crc32] != [metadata.num_columns] * metadata.num_row_groups:
        raise damaged_part(path, "it has other row groups and columns than its record")


def other_columns(path: Place, wanted: pa.Schema, stored: pa.Schema) -> DamagedRunError:
    """The error for a whole part at `path` whose columns are not the `wanted` ones of run.json."""
    pairs = ((wanted, stored), (stored, wanted))
    differing = dict.fromkeys(field.name for one, other in pairs for field in one if field not in list(other))
    return DamagedRunError(
        f"The part {path} is whole and its columns are not those of {RUN_JSON} "
        f"({', '.join(differing) or 'another order'}), so one of the two is of another run; restore {RUN_JSON} from a "
        "copy, or move the part and its record out of the folder."
    )


def damaged_part(path: Place, why: str) -> DamagedRunError:
    """The error for the part at `path`, with the remedy."""
    return DamagedRunError(
        f"The part {path} is damaged: {why}; delete it and {path.stem}.json, and run the same extract command again."
    )


def _string_path(field: pa.Field) -> str | None:
    if pa.types.is_string(field.type):
        return field.name
    if pa.types.is_list(field.type) and pa.types.is_string(field.type.value_type):
        return f"{field.name}.list.element"
    return None


def _row_groups(table: pa.Table, row_group_bytes: int) -> Iterator[pa.Table]:
    if table.nbytes <= row_group_bytes or table.num_rows == 1:
        # Not before, because a column of more than 2 GiB of text cannot be one chunk.
        yield table.combine_chunks()
        return
    half = table.num_rows // 2
    yield from _row_groups(table.slice(0, half), row_group_bytes)
    yield from _row_groups(table.slice(half), row_group_bytes)


def _footer_bytes(metadata: pq.FileMetaData) -> int:
    return metadata.serialized_size + 8  # the metadata, its length in 4 bytes, the magic PAR1


def _chunk(metadata: pq.FileMetaData, group: int, column: int) -> slice:
    chunk = metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return slice(start, start + chunk.total_compressed_size)


@contextmanager
def _reading(
    path: Place, digest: PartDigest, view: memoryview, tails: Tails
) -> Iterator[tuple[Callable[[Sequence[slice]], None], bool]]:
    """What reads spans of a part into the same places of `view`, and whether all should be read at once.

    The footer is there already.
    """
    if isinstance(path, BucketPath) and path.content is None:
        tail = tails.read(path, digest)
        start = digest.bytes - len(tail)
        view[start:] = tail
        yield lambda spans: read_spans(path, view, [span for span in spans if span.start < start]), True
        return
    with path.open("rb") as file:
        _read_into(view, file, [slice(digest.bytes - digest.footer_bytes, digest.bytes)])
        yield partial(_read_into, view, file), False


def _read_into(view: memoryview, file: IOBase, spans: Sequence[slice]) -> None:
    """Read these spans of the file into the same places of `view`."""
    for span in spans:
        file.seek(span.start)
        if file.readinto(view[span]) != span.stop - span.start:  # pyright: ignore[reportAttributeAccessIssue]
            raise EOFError("it ends early")
