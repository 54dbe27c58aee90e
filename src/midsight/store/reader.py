"""Reading a run: columns and failures in dataset order. Every byte is compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from midsight.buckets.path import BucketPath, Place, to_place
from midsight.buckets.reading import ahead
from midsight.errors import DamagedRunError, MidsightError, Option, RunError, counted
from midsight.samples.sample import Failure
from midsight.store.commits import Commit, CommitKey, part_path, read_commits, record_path, size_of_part
from midsight.store.files import Shard
from midsight.store.hub import download_run, is_hub_address, parse_address
from midsight.store.numbers import numbers_of
from midsight.store.optional import import_optional
from midsight.store.parts import Tails, read_part
from midsight.store.rows import Rows, Samples, places_of, require_distinct_rows, samples_array
from midsight.store.schema import StoreDtype, is_vector, run_schema
from midsight.store.spec import RunSpec, is_run, read_spec
from midsight.store.tables import dataset_of, ordered_table, pandas_frame, vector_array
from midsight.store.vectors import VectorBatch, array_for, layer_columns, vector_batch, vector_column, vectors_of
from midsight.taps.shown import as_html, in_lines, no_such_column
from midsight.taps.tap import Position, Tap

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


SCALAR_WIDTH = 16
"""Numbers of a vector that take about as much space as another column's value."""


@dataclass(frozen=True, eq=False)
class Run:
    """The content of a run folder when it was opened; open it again to see rows that were added later.

    Everything that reads data raises DamagedRunError, naming the part, if stored bytes are not those
    that were written.
    """

    path: Place
    """The run folder, absolute."""
    spec: RunSpec
    """What the run is."""
    commits: tuple[Commit, ...] = field(repr=False)
    """What was committed, oldest first."""

    def __len__(self) -> int:
        return sum(commit.rows for commit in self.commits)

    def __repr__(self) -> str:
        return in_lines(f"Run({str(self.path)!r})", self._facts(), self.spec.vectors)

    def _repr_html_(self) -> str:
        return as_html(f"Run {self.path}", self._facts(), self.spec.vectors)

    def _facts(self) -> dict[str, str]:
        failed = {failure.sample_id for commit in self.commits for failure in commit.failures}
        rows = self.spec.dataset.rows
        return {
            "samples": f"{len(self):,} stored" + ("" if rows is None else f", of {counted(rows, 'row')}"),
            **({"failed, now or earlier": f"{len(failed):,}"} if failed else {}),
            "data": self.spec.dataset.path or "from Python",
            "model": f"{self.spec.model.name} ({self.spec.model.family}), {self.spec.model.dtype or 'dtype unknown'}",
            **({} if self.spec.imported is None else {"imported": self.spec.imported.source}),
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column, in stored order."""
        return tuple(self._schema.names)

    @property
    def vector_columns(self) -> tuple[str, ...]:
        """The columns that `matrix` reads, in stored order."""
        return tuple(field.name for field in self._schema if is_vector(field))

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The taps of those vector columns that hold decoder states, in stored order."""
        return tuple(tap for name in self.vector_columns if (tap := Tap.parse_or_none(name)))

    def sample_ids(self) -> list[str]:
        """The ids of all rows, in dataset order."""
        return self._table(["sample_id"]).column("sample_id").to_pylist()

    def part_paths(self) -> list[str]:
        """The Parquet files that hold the rows, for other tools, oldest first.

        Other files in the folder may be left from a killed process or a compaction and do not count.
        """
        return [str(part_path(self.path, *commit.key)) for commit in self.commits if commit.part]

    def matrix(
        self,
        name: str,
        layer: int | None = None,
        residual: bool = False,
        *,
        samples: Samples | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """One vector column.

        Args:
            name: A column, or the name of a position's representation, like `query_token_representation`.
            layer: Decoder layer of that representation; a negative one counts from the last.
            residual: Take the last layer's state before the final norm.
            samples: Sample ids, in the order of the rows to return; or a mask, true or false for every row in
                dataset order. By default all rows.
            out: Array [n, width] to write into and return, like a `numpy.memmap`; float32 or wider, or for a
                run that stores float16, float16 or wider. By default a new array.

        Returns:
            float32 [n, width], rows in dataset order, or in the order of the ids.

        Raises:
            MidsightError: The run does not have these vectors or samples, or `out` does not fit.
            DamagedRunError: Stored bytes are not those that were written.
        """
        column = vector_column(self.path, self.spec, name, layer, residual)
        rows = self._rows(samples)
        out = self._array((rows.count, self.spec.vectors[column]), out)
        self._read_vectors([column], rows, out[:, None])
        return out

    def matrices(
        self, position: Position, *, samples: Samples | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The vectors of one position at every stored layer.

        Args:
            position: `vision_token`, `query_token` or `image_mean`.
            samples: Sample ids, in the order of the rows to return; or a mask, true or false for every row in
                dataset order. By default all rows.
            out: Array [n, layers, width] to write into and return, like a `numpy.memmap`; float32 or wider, or for a
                run that stores float16, float16 or wider. By default a new array.

        Returns:
            float32 [n, layers, width]. Rows are in dataset order, or in the order of the ids. Layers are in the
            order of `run.spec.request.layers`, ascending.

        Raises:
            MidsightError: The run does not have these vectors or samples, or `out` does not fit.
            DamagedRunError: Stored bytes are not those that were written.
        """
        columns = layer_columns(self.path, self.taps, position)
        rows = self._rows(samples)
        out = self._array((rows.count, len(columns), self.spec.vectors[columns[0]]), out)
        self._read_vectors(columns, rows, out)
        return out

    def vector_batches(
        self, name: str, layer: int | None = None, residual: bool = False, *, batch_size: int = 1024
    ) -> Iterator[VectorBatch]:
        """One vector column a few rows at a time, for runs that do not fit in memory.

        Args:
            name: A column, or the name of a position's representation, like `query_token_representation`.
            layer: Decoder layer of that representation; a negative one counts from the last.
            residual: Take the last layer's state before the final norm.
            batch_size: Maximum number of rows at a time.

        Returns:
            Batches of ids, `input_index` and vectors, as a named tuple; rows in stored order.

        Raises:
            MidsightError: The run does not have these vectors.
            DamagedRunError: Stored bytes are not those that were written.
            RunError: The run was compacted after it was opened.
        """
        column = vector_column(self.path, self.spec, name, layer, residual)
        if not isinstance(batch_size, int | np.integer) or isinstance(batch_size, bool) or batch_size < 1:
            raise MidsightError(Option("batch_size", batch_size), " is not a number of rows; give 1 or more.")
        return (
            vector_batch(batch.slice(start, batch_size), column)
            for batch in self.batches(["sample_id", "input_index", column])
            for start in range(0, batch.num_rows, batch_size)
        )

    def table(self) -> pa.Table:
        """Every column without vectors, rows in dataset order.

        Texts are of type `string`, and in a column of more than 2 GiB of type `large_string`.
        """
        return self._table(self._known_or_scalar(None))

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns as a pandas DataFrame.

        Whole numbers and truth values that may be missing have the types `Int64` and `boolean`. The cells of
        a vector column are views of one array.

        Args:
            columns: Names of columns; by default every column without vectors.

        Returns:
            The columns, rows in dataset order.

        Raises:
            MidsightError: The run does not have a column, or pandas is not installed.
            DamagedRunError: Stored bytes are not those that were written.
        """
        import_optional("pandas")
        names = self._known_or_scalar(columns)
        stored = self.spec.request.store_dtype
        vectors = {name: self._matrix_of(name, stored) for name in names if name in self.spec.vectors}
        return pandas_frame(names, self._scalars(names), vectors)

    def to_polars(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Columns as a polars DataFrame; vectors are float32 arrays of fixed width.

        Args:
            columns: Names of columns; by default every column without vectors.

        Returns:
            The columns, rows in dataset order.

        Raises:
            MidsightError: The run does not have a column, or polars is not installed.
            DamagedRunError: Stored bytes are not those that were written.
        """
        polars = import_optional("polars")
        # Before 1.36, polars makes other numbers of half floats.
        return polars.from_arrow(self._table(self._known_or_scalar(columns), "float32"))

    def to_dataset(self, columns: Sequence[str] | None = None) -> Any:
        """Columns as a Hugging Face `datasets.Dataset` in memory.

        Args:
            columns: Names of columns; by default every column without vectors.

        Returns:
            The columns, rows in dataset order.

        Raises:
            MidsightError: The run does not have a column, or datasets is not installed.
            DamagedRunError: Stored bytes are not those that were written.
        """
        import_optional("datasets")
        return dataset_of(self._table(self._known_or_scalar(columns)), self.spec.run_id, self.commits)

    def failures(self) -> list[Failure]:
        """The samples that failed and have no row, each with its latest reason, by row in the dataset."""
        latest = {failure.sample_id: failure for commit in self.commits for failure in commit.failures}
        if latest:
            for batch in self.batches(["sample_id"]):
                for sample_id in batch.column("sample_id").to_pylist():
                    latest.pop(sample_id, None)
        return sorted(latest.values(), key=lambda failure: failure.input_index)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns a piece at a time.

        Args:
            columns: Names of columns.

        Returns:
            Tables of at most 64 MB, rows in stored order.

        Raises:
            MidsightError: The run does not have a column.
            DamagedRunError: Stored bytes are not those that were written.
            RunError: The run was compacted, moved or deleted after it was opened.
        """
        columns = self._known(columns)
        return (batch for batches in self._parts(self.commits, columns) for batch in batches)

    def placed_batches(self, columns: Sequence[str], rows: Rows) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Columns of some rows a piece at a time; parts without any of the rows are not read.

        Args:
            columns: Names of columns.
            rows: The rows that are wanted.

        Returns:
            Tables of at most 64 MB in stored order, each with the places of its rows in the order of `rows`.
        """
        counts = [commit.rows for commit in self.commits]
        starts = [*accumulate(counts, initial=0)][:-1]
        wanted = [index for index, start in enumerate(starts) if rows.wants(start, counts[index])]
        parts = self._parts([self.commits[index] for index in wanted], columns)
        for index, batches in zip(wanted, parts, strict=True):
            place = starts[index]
            for batch in batches:
                yield rows.place(batch, place)
                place += batch.num_rows

    def _parts(self, commits: Sequence[Commit], columns: Sequence[str]) -> Iterator[Iterable[pa.Table]]:
        """The columns of each part, one after the other; in a bucket the next ones are on their way already."""
        tails = self._tails  # before threads ask for it
        if not isinstance(self.path, BucketPath):
            return (self._part(commit, columns, tails) for commit in commits)
        widths = {name: self.spec.vectors.get(name, SCALAR_WIDTH) for name in self.columns}
        share = sum(widths[name] for name in columns) / sum(widths.values())

        def bytes_read(commit: Commit) -> int:
            return round(share * size_of_part(commit))

        return ahead(commits, lambda commit: [*self._part(commit, columns, tails)], size=bytes_read)

    def _part(self, commit: Commit, columns: Sequence[str], tails: Tails) -> Iterator[pa.Table]:
        if not commit.part:
            return
        try:
            file = part_path(self.path, *commit.key)
            yield from read_part(file, commit.part, columns, self._schema, tails=tails)
        except DamagedRunError as error:
            if not is_run(self.path):
                raise RunError(f"{self.path} was not found; it was moved or deleted after it was opened.") from error
            if record_path(self.path, *commit.key).exists():
                raise
            raise RunError(f"{self.path} was compacted or repaired after it was opened; open it again.") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the folder and the commits it had, so that a pickle holds no rows, sizes or checksums."""
        return _opened_before, (self.path, self.spec.run_id, tuple(commit.key for commit in self.commits))

    @cached_property
    def _schema(self) -> pa.Schema:
        return run_schema(self.spec.columns)

    @cached_property
    def _tails(self) -> Tails:
        """What is kept of the parts in a bucket for the next column."""
        return Tails()

    def _known(self, columns: Sequence[str]) -> list[str]:
        if isinstance(columns, str):
            raise MidsightError(f"The columns are the text {columns!r}; give a list of names, like [{columns!r}].")
        columns = [*dict.fromkeys(columns)]
        for name in columns:
            if name not in self.columns:
                raise no_such_column(self.path, name, self.columns)
        return columns

    def _known_or_scalar(self, columns: Sequence[str] | None) -> list[str]:
        if columns is None:
            return [name for name in self.columns if name not in self.spec.vectors]
        return self._known(columns)

    def _table(self, columns: Sequence[str], dtype: StoreDtype | None = None) -> pa.Table:
        """The columns, with the vectors' elements as `dtype`, by default as they are stored."""
        scalars = self._scalars(columns)
        fields, arrays = [], []
        for name in columns:
            if name in self.spec.vectors:
                arrays.append(vector_array(self._matrix_of(name, dtype or self.spec.request.store_dtype)))
                fields.append(pa.field(name, arrays[-1].type, nullable=False))
            else:
                arrays.append(scalars.column(name))
                fields.append(scalars.field(name))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields))

    def _scalars(self, columns: Sequence[str]) -> pa.Table:
        """Those of the columns that are not vectors, rows in dataset order."""
        columns = [name for name in columns if name not in self.spec.vectors]
        schema = pa.schema([self._schema.field(name) for name in columns])
        return ordered_table(schema, self.batches(columns), self._order)

    def _matrix_of(self, column: str, dtype: StoreDtype) -> np.ndarray:
        return self.matrix(column, out=np.empty((len(self), self.spec.vectors[column]), dtype))

    @cached_property
    def _order(self) -> np.ndarray:
        """Index of the stored row, for every row in dataset order, int64 [n]."""
        return np.argsort(self._input_index, kind="stable")

    @cached_property
    def _input_index(self) -> np.ndarray:
        """The row in the dataset of every stored row, int64 [n]; raises DamagedRunError if one is there twice."""
        indices = [numbers_of(batch.column("input_index")) for batch in self.batches(["input_index"])]
        joined = np.concatenate([np.empty(0, np.int64), *indices])
        require_distinct_rows(self.path, self.commits, joined)
        return joined

    def _rows(self, samples: Samples | None) -> Rows:
        if samples is None:
            return Rows.of_stored(self._order, len(self))
        chosen = samples_array(samples, len(self))
        if chosen.dtype == np.bool_:
            return Rows.of_stored(self._order[chosen], len(self))
        stored = (batch.column("sample_id").to_pylist() for batch in self.batches(["sample_id"]))
        return Rows.of_stored(places_of(self.path, stored, chosen), len(self))

    def _array(self, shape: tuple[int, ...], out: np.ndarray | None) -> np.ndarray:
        return array_for(shape, np.dtype(self.spec.request.store_dtype), out)

    def _read_vectors(self, columns: Sequence[str], rows: Rows, out: np.ndarray) -> None:
        """Write vector columns of the same width into `out` [rows, columns, width]."""
        for batch, places in self.placed_batches(columns, rows):
            for index, column in enumerate(columns):
                out[places, index] = vectors_of(batch, column)


def open_run(path: str | Place) -> Run:
    """The run in the folder `path`, without labels; raises as `midsight.open_run` does."""
    if is_hub_address(path):
        path = download_run(parse_address(str(path)))
    while True:
        run = read_commit_records(path)
        if isinstance(run.path, BucketPath):
            return run  # its rows are compared when they are first put in order, not by a request for every part
        try:
            run._input_index  # noqa: B018  (it compares the rows)
        except DamagedRunError:
            raise
        except RunError:
            if not is_run(run.path):
                raise
            continue  # it was compacted in between
        return run


def read_commit_records(path: str | Place, shard: Shard | None = None) -> Run:
    """The run in the folder `path`, or one shard of it, whose rows nobody has read: one may be in two commits."""
    path = to_place(path).absolute()
    spec = read_spec(path)
    return Run(path, spec, read_commits(path, spec.run_id, shard))


def _opened_before(path: Place, run_id: str, keys: tuple[CommitKey, ...]) -> Run:
    """The run as it was when it was pickled: with the commits `keys`, in that order."""
    run = open_run(path)
    commits = {commit.key: commit for commit in run.commits}
    if run.spec.run_id != run_id or not commits.keys() >= set(keys):
        raise RunError(f"{path} was compacted, repaired or replaced after this run was pickled; open it again.")
    return Run(run.path, run.spec, tuple(commits[key] for key in keys))
