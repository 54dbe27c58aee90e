"""A run with what is concluded from it: its labels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from midsight.labels.judge import JudgeOptions, Undecided
from midsight.labels.label import label_from_file, label_run
from midsight.store import reader
from midsight.store.annotations import LabelRecord, label_names, read_label


class Run(reader.Run):
    """The content of a run folder when it was opened, and its labels; open it again to see rows that were added later.

    Everything that reads data raises DamagedRunError, naming the file, if stored bytes are not those
    that were written.
    """

    @classmethod
    def of(cls, run: reader.Run) -> Self:
        """The same run, with labels.

        Args:
            run: An opened run.

        Returns:
            The run.
        """
        return cls(**{field.name: getattr(run, field.name) for field in fields(reader.Run)})

    def label(
        self,
        judge: str,
        *,
        name: str = "correct",
        undecided: Undecided | None = None,
        lenient: bool = False,
        threshold: float = 0.5,
        tolerance: float = 0.0,
    ) -> LabelRecord:
        """Judges every answer, and stores the verdicts in the run as a label; docs/labels.md has the rules.

        Args:
            judge: `yes_no`, `exact`, `contains`, `f1`, `vqa`, `numeric`, `choice`, or a variant like `yes_no:pope`.
            name: Name of the label; one of the same name is replaced.
            undecided: What becomes of answers that the judge cannot read: `null`, or `wrong`, which is the default
                of the variants that reproduce published scorers.
            lenient: yes_no: a statement without negation is a yes.
            threshold: f1 and vqa: the lowest score that is right.
            tolerance: numeric: the largest relative error that is right.

        Returns:
            What was counted.

        Raises:
            MidsightError: The judge is unknown, the run has no answers, or a reference is outside the judge's domain.
        """
        options = JudgeOptions(undecided, lenient, threshold, tolerance)
        return label_run(self, judge, name=name, options=options)

    def label_from(
        self,
        file: str | Path,
        *,
        column: str,
        id: str = "sample_id",
        name: str = "correct",
        threshold: float | None = None,
        null_words: Collection[str] = (),
    ) -> LabelRecord:
        """Stores verdicts from a table file in the run as a label, joined by sample id.

        Args:
            file: JSONL, JSON, CSV, TSV or Parquet.
            column: Its column of verdicts or scores.
            id: Its column of sample ids; compared as text.
            name: Name of the label; one of the same name is replaced.
            threshold: The lowest score that is right; None if the verdicts are not scores.
            null_words: Words that mean undecided, besides an empty cell.

        Returns:
            What was counted.

        Raises:
            MidsightError: The file is not usable, or none of its ids is one of the run's.
        """
        return label_from_file(
            self, Path(file), id_column=id, column=column, name=name, threshold=threshold, null_words=null_words
        )[0]

    def labels(self, name: str) -> list[bool | None]:
        """The values of a label.

        Args:
            name: Name of the label.

        Returns:
            A value for each row, in dataset order; None for undecided ones and for rows without a value.

        Raises:
            MidsightError: The run has no such label.
        """
        table = self.label_table(name)
        values = dict(zip(table["sample_id"].to_pylist(), table["value"].to_pylist(), strict=True))
        return [values.get(sample_id) for sample_id in self.sample_ids()]

    def label_table(self, name: str) -> pa.Table:
        """A label as it is stored.

        Args:
            name: Name of the label.

        Returns:
            `sample_id`, `value`, `score` where the judge has one, and `reason` where the value is null.

        Raises:
            MidsightError: The run has no such label.
        """
        return read_label(self.path, self.spec.run_id, name)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the run's labels."""
        return tuple(label_names(self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, super().__reduce__()


def _unpickled(opened: Callable[..., reader.Run], arguments: tuple[Any, ...]) -> Run:
    return Run.of(opened(*arguments))


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
    return Run.of(reader.open_run(path))
