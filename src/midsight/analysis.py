"""A run with what is concluded from it: labels, data for probes, and findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pyarrow as pa

from midsight.buckets.path import Place
from midsight.errors import MidsightError
from midsight.labels.judge import JudgeOptions, Undecided
from midsight.labels.label import label_from_file, label_run
from midsight.store import reader
from midsight.store.annotations import LabelRecord, label_names, read_label
from midsight.store.hub import require_writable
from midsight.taps.shown import no_such_column

if TYPE_CHECKING:
    from midsight.probes.finding import Finding


class TrainingData(NamedTuple):
    """Vectors and labels for a probe of one's own."""

    X: np.ndarray
    """float32 [n, width]."""
    y: np.ndarray
    """bool [n]."""
    groups: np.ndarray
    """Number of the image [n], for GroupKFold."""
    ids: list[str]
    """Sample ids [n]."""


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
        """Judges every answer, and stores the verdicts in the run as a label.

        Args:
            judge: `yes_no`, `exact`, `contains`, `f1`, `vqa`, `numeric`, `choice`, or a variant like `yes_no:pope`.
            name: Name of the label; one of the same name is replaced.
            undecided: What becomes of answers that the judge cannot read: `null` leaves them without a value, `wrong`
                counts them. By default `wrong` for the variants that reproduce published scorers, else `null`.
            lenient: yes_no: a statement without negation is a yes.
            threshold: f1 and vqa: the lowest score that is right, from 0 to 1.
            tolerance: numeric: the largest relative error that is right; 0.01 is one per cent.

        Returns:
            What was counted.

        Raises:
            MidsightError: The judge is unknown, the run has no answers, or a reference is outside the judge's domain.
        """
        require_writable(self.path)
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
        require_writable(self.path)
        return label_from_file(
            self, file, id_column=id, column=column, name=name, threshold=threshold, null_words=null_words
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
            `sample_id`, `value`, score where the judge has one, and `reason` where the value is null.

        Raises:
            MidsightError: The run has no such label.
        """
        return read_label(self.path, self.spec.run_id, name)

    def training_data(self, column: str, label: str) -> TrainingData:
        """One vector column and one label, as scikit-learn takes them.

        Samples without a value are left out, and in an imported run those without a vector.

        Args:
            column: The vector column.
            label: Name of the label.

        Returns:
            `X` float32 [n, width], `y` bool [n], `groups` int64 [n] (equal for equal images), `ids`; in dataset order.

        Raises:
            MidsightError: The run has no such column or label, or no sample with both.
        """
        if column not in self.vector_columns:
            raise no_such_column(self.path, column, self.vector_columns)
        values = self.labels(label)
        mask = np.array([value is not None for value in values], bool)
        if not mask.any():
            raise MidsightError(f"The label {label} of {self.path} has no value for any sample; choose another label.")
        if self.spec.imported is not None:
            mask &= ~np.isnan(self.matrix(column)[:, 0])
            if not mask.any():
                raise MidsightError(
                    f"No sample of {self.path} with the label {label} has a vector in {column}; choose another column."
                )
        images = self.table()["image_id"].to_numpy()[mask]
        return TrainingData(
            X=self.matrix(column, samples=mask),
            y=np.array([value for value, kept in zip(values, mask, strict=True) if kept], bool),
            groups=np.unique(images, return_inverse=True)[1].astype(np.int64),
            ids=[one for one, kept in zip(self.sample_ids(), mask, strict=True) if kept],
        )

    def probe(
        self,
        label: str = "correct",
        *,
        name: str | None = None,
        columns: Sequence[str] | None = None,
        strata: Sequence[str] = (),
        group_by: Sequence[str] = ("image_id",),
        folds: int = 5,
        holdout: float | None = None,
        evaluate_on: reader.Run | None = None,
        methods: Sequence[str] = ("ridge",),
        halp: bool = False,
        permutations: int = 199,
        seed: int = 0,
    ) -> Finding:
        """Probes vector columns for a label beside the model's confidence, and stores the finding in the run.

        Args:
            label: The label to predict.
            name: Name of the finding; by default the label's.
            columns: Vector columns, or positions like `query_token`; by default all.
            strata: Columns within which results are also given; by default none.
            group_by: Columns whose values keep samples together, so that none of them is in training and test.
            folds: Number of folds, 3 or more.
            holdout: Test on this share of the groups, from 0 to 1, in place of cross-validation.
            evaluate_on: Test on another run that has the same label.
            methods: `ridge` is always there; also `logistic` and `mlp`, for named columns.
            halp: Also the recipe of the HALP paper, for named columns.
            permutations: How often labels are permuted, for p-values; 0 for none.
            seed: The seed that draws folds and permutations.

        Returns:
            The finding, which is stored as result.json.

        Raises:
            MidsightError: The label, a column or an option cannot be used; the sentence says why.
        """
        from midsight.probes.study import StudyOptions, study
        from midsight.probes.write import write_study

        require_writable(self.path)
        options = StudyOptions(
            label=label,
            name=name,
            columns=tuple(columns) if columns else None,
            strata=tuple(strata),
            group_by=tuple(group_by),
            folds=folds,
            holdout=holdout,
            methods=tuple(methods),
            halp=halp,
            permutations=permutations,
            seed=seed,
        )
        done = study(self, options, evaluate_on)
        write_study(self, done)
        return done.finding

    def report(
        self,
        path: str | Path,
        *,
        json: str | Path | None = None,
        column: str | None = None,
        label: str | None = None,
        findings: str | None = None,
        risk: str | Path | None = None,
        images: str | Path | None = None,
    ) -> Path:
        """Writes one HTML file that works offline: what was run, answers, findings, a map and every sample.

        Args:
            path: The file; an earlier report is replaced.
            json: Also write what the page is made of to this JSON file.
            column: Vector column of the map, or a position like `query_token`; by default the finding's.
            label: The label; by default the finding's, or `correct`, or the first one.
            findings: Name of the finding; by default the label's.
            risk: Table with the columns `sample_id` and `risk`, in place of the finding's risks.
            images: Folder that image paths start from; by default what the run says.

        Returns:
            The path.

        Raises:
            MidsightError: The run does not have the column, label or finding, or a file is there that no report wrote.
        """
        from midsight.reports.page.summary.choice import ReportOptions
        from midsight.reports.page.write import write_report

        options = ReportOptions(
            column=column,
            label=label,
            finding=findings,
            risk=risk,
            images=images,
        )
        write_report(self, Path(path), options, None if json is None else Path(json))
        return Path(path)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the run's labels."""
        return tuple(label_names(self.path))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, super().__reduce__()


def _unpickled(opened: Callable[..., reader.Run], arguments: tuple[Any, ...]) -> Run:
    return Run.of(opened(*arguments))


def open_run(path: str | Place) -> Run:
    """Opens a run; it may still be written to.

    Args:
        path: The run folder, its address in a bucket (`s3://`, `gs://` or `az://`, by the user's own credentials), or
            that of a run on the hub: `hf://datasets/OWNER/NAME`, with `@REVISION` for another one than the main branch.
            Files from the hub are downloaded into its cache.

    Returns:
        What is committed by now.

    Raises:
        MidsightError: `path` is not a run folder, or the hub refuses.
        RunError: The run's format is newer than this midsight.
        DamagedRunError: run.json, a commit record or a part's size is not what was written, or a row is there twice.
    """
    return Run.of(reader.open_run(path))
