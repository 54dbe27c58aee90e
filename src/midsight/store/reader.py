"""Reading a run: columns and failures in dataset order. Every byte is compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.samples.sample import Failure
from midsight.store.commits import Commit, part_path, read_commits, record_path
from midsight.store.optional import import_optional
from midsight.store.parts import read_part
from midsight.store.schema import is_vector, run_schema
from midsight.store.spec import RunSpec, read_spec
from midsight.taps.tap import POSITIONS, Position, Tap

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


@dataclass(frozen=True, eq=False)
class Run:
    """The content of a run folder when it was opened; open it again to see rows that were added later.

    Everything that reads data raises DamagedRunError, naming the part, if stored bytes are not those
    that were written.
    """

    path: Path
    """The run folder."""
    spec: RunSpec
    """What the run is."""
    commits: tuple[Commit, ...] = field(repr=False)
    """What was committed, oldest first."""

    def __len__(self) -> int:
        return sum(commit.rows for commit in self.commits)

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
        return self._ordered(["sample_id"]).column("sample_id").to_pylist()

    def matrix(self, name: str, layer: int | None = None, residual: bool = False) -> np.ndarray:
        """One vector column.

        Args:
            name: A column, or the name of a position's representation, like `query_token_representation`.
            layer: Decoder layer of that representation; a negative one counts from the last.
            residual: Take the last layer's state before the final norm.

        Returns:
            float32 [n, width], rows in dataset order.

        Raises:
            MidsightError: The run does not have these vectors.
            DamagedRunError: Stored bytes are not those that were written.
        """
        column = self._vector_column(name, layer, residual)
        matrix = np.empty((len(self), self.spec.vectors[column]), np.float32)
        start = 0
        for batch in self.batches([column]):
            rows = slice(start, start + batch.num_rows)
            matrix[self._positions[rows]] = vectors_of(batch, column)
            start = rows.stop
        return matrix

    def table(self) -> pa.Table:
        """Every column without vectors, rows in dataset order."""
        return self._ordered([name for name in self.columns if name not in self.spec.vectors])

    def to_pandas(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns as a pandas DataFrame.

        Args:
            columns: Names of columns; by default every column without vectors.

        Returns:
            The columns, rows in dataset order.

        Raises:
            MidsightError: The run does not have a column, or pandas is not installed.
            DamagedRunError: Stored bytes are not those that were written.
        """
        import_optional("pandas")
        return self._chosen(columns).to_pandas()

    def to_polars(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Columns as a polars DataFrame; vectors are arrays of fixed width.

        Args:
            columns: Names of columns; by default every column without vectors.

        Returns:
            The columns, rows in dataset order.

        Raises:
            MidsightError: The run does not have a column, or polars is not installed.
            DamagedRunError: Stored bytes are not those that were written.
        """
        return import_optional("polars").from_arrow(self._chosen(columns))

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
        datasets = import_optional("datasets")
        return datasets.Dataset(datasets.table.InMemoryTable(self._chosen(columns)))

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
            DamagedRunError: Stored bytes are not those that were written.
            RunError: The run was compacted after it was opened.
        """
        for commit in self.commits:
            if not commit.part:
                continue
            try:
                yield from read_part(part_path(self.path, commit.shard, commit.counter), commit.part, columns)
            except DamagedRunError as error:
                if record_path(self.path, commit.shard, commit.counter).exists():
                    raise
                raise RunError(f"{self.path} was compacted or repaired after it was opened; open it again.") from error

    @property
    def _schema(self) -> pa.Schema:
        return run_schema(self.spec.columns)

    def _chosen(self, columns: Sequence[str] | None) -> pa.Table:
        if columns is None:
            return self.table()
        if isinstance(columns, str):
            raise MidsightError(f"The columns are the text {columns!r}; give a list of names, like [{columns!r}].")
        columns = [*dict.fromkeys(columns)]
        for name in columns:
            if name not in self.columns:
                raise MidsightError(f"{self.path} has no column {name!r}; it has {', '.join(self.columns)}.")
        return self._ordered(columns)

    def _ordered(self, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([self._schema.field(name) for name in columns])
        return pa.concat_tables([schema.empty_table(), *self.batches(columns)]).take(self._order)

    @cached_property
    def _order(self) -> np.ndarray:
        """Index of the stored row, for every row in dataset order, int64 [n]."""
        indices = [batch.column("input_index").to_numpy() for batch in self.batches(["input_index"])]
        return np.argsort(np.concatenate([np.empty(0, np.int64), *indices]), kind="stable")

    @cached_property
    def _positions(self) -> np.ndarray:
        """Index in dataset order, for every stored row, int64 [n]."""
        return np.argsort(self._order)

    def _vector_column(self, name: str, layer: int | None, residual: bool) -> str:
        column = "" if residual else name
        if layer is not None and layer < 0:
            layer += self.spec.model.layers
        if layer is not None:
            positions: dict[str, Position] = {f"{position}_representation": position for position in POSITIONS}
            stage = "residual" if residual else "layer"
            column = str(Tap(positions[name], layer, stage)) if name in positions and layer >= 0 else ""
        if column not in self.spec.vectors:
            asked = f"{name!r}" + ("" if layer is None else f" at layer {layer}") + (" (residual)" if residual else "")
            raise MidsightError(
                f"{self.path} does not hold the vectors {asked}; it holds {', '.join(self.vector_columns)}."
            )
        return column


def open_run(path: str | Path) -> Run:
    """Opens a run; it may still be written to.

    Args:
        path: The run folder.

    Returns:
        What is committed by now.

    Raises:
        MidsightError: `path` is not a run folder.
        RunError: The run's format is newer than this midsight.
        DamagedRunError: run.json, a commit record or a part's size is not what was written.
    """
    path = Path(path)
    spec = read_spec(path)
    return Run(path, spec, read_commits(path, spec.run_id))


def vectors_of(batch: pa.Table, column: str) -> np.ndarray:
    """One vector column of `batch` as it is stored, float32 or float16 [rows, width]."""
    width = batch.schema.field(column).type.list_size
    return np.concatenate(
        [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, width) for chunk in batch.column(column).chunks]
    )
