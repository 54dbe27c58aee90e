"""One Parquet file of a run for a browser of embeddings: flat columns, a map, small pictures, labels and risk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from midsight.errors import MidsightError, Option, counted
from midsight.probes.pca import Plane, principal_plane
from midsight.reports.page.summary.choice import ReportOptions, choose
from midsight.reports.page.summary.risk import Risk
from midsight.reports.thumbnails import ImageOfRun, Thumbnails, make_thumbnails
from midsight.store.annotations import label_names, read_label
from midsight.store.export_target import new_target
from midsight.store.findings import finding_folder, finding_names
from midsight.store.probe import Probe
from midsight.store.reader import Run
from midsight.store.schema import folded
from midsight.store.vectors import vectors_of
from midsight.taps.shown import no_such_column

OWN = ("pc1", "pc2", "thumbnail", "first_token_max")
"""Columns that the run does not have; `label_NAME` too."""
LEFT_OUT = ("answer_token_ids", "answer_logprobs", "first_token_top_ids", "first_token_top_logprobs")
"""Lists that no browser shows."""
THUMBNAIL = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""An image as browsers of datasets take it."""


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """What a view shows."""

    column: str | None = None
    """The vector column of the map; by default that of the first finding's probe, or the last query token."""
    images: str | Path | None = None
    """Folder that image paths start from; by default what run.json says."""
    limit: int = 100_000
    """Maximum number of samples; of more, as many at equal distances."""
    thumbnails: int = 5_000
    """Maximum number of images that get a thumbnail."""


@dataclass(frozen=True)
class View:
    """A view that was written."""

    rows: int
    """Samples in it."""
    has_thumbnails: bool
    """Whether any sample has a thumbnail."""
    notes: tuple[Sequence[str | Option], ...]
    """What a user should know, each as the parts of a sentence."""


def write_view(run: Run, out: Path, options: ViewOptions, *, overwrite: bool) -> View:
    """Writes the view of a run to the file `out`, whole or not at all.

    Args:
        run: The run.
        out: The Parquet file.
        options: What it shows.
        overwrite: Whether a file at `out` may be replaced.

    Returns:
        What was written.

    Raises:
        MidsightError: The run has no samples or no such column, or something that may not be replaced is at `out`.
        RunError: The disk refuses.
    """
    for name, least in (("limit", 1), ("thumbnails", 0)):
        if getattr(options, name) < least:
            raise MidsightError(Option(name, getattr(options, name)), f" is too few; give {least} or more.")
    if not len(run):
        raise MidsightError(f"{run.path} holds no samples, so there is nothing to view; extract some first.")
    column = options.column or usual_column(run)
    if column not in run.vector_columns:
        raise no_such_column(run.path, column, run.vector_columns)
    with new_target(run, out, "a view", folder_of=None, overwrite=overwrite) as made:
        plane = principal_plane(lambda: (batch.vectors for batch in run.vector_batches(column)), column)
        rows = pa.concat_tables(_mapped_rows(run, column, plane, options.limit))
        pictures = _thumbnails(run, rows, options)
        risk = None if "risk" in rows.column_names else choose(run, ReportOptions()).risk
        table = _flat(rows, _labels(run, rows), risk, pictures)
        pq.write_table(table, made, compression="zstd", write_page_checksum=True)
    notes = [*_notes(run, rows, column, plane, pictures, options), *([(risk.source,)] if risk else [])]
    return View(len(rows), bool(pictures.webp), tuple(notes))


def usual_column(run: Run) -> str:
    """The vector column that a map is of if nobody says: that of a probe, or the last of the query token."""
    if not run.vector_columns:
        raise MidsightError(f"{run.path} holds no vectors; extract it with other ", Option("positions"), ".")
    for name in finding_names(run.path):
        try:
            column = Probe.load(finding_folder(run.path, name)).column
        except MidsightError:
            continue
        if column in run.vector_columns:
            return column
    of_question = [str(tap) for tap in run.taps if tap.position == "query_token" and tap.stage == "layer"]
    return of_question[-1] if of_question else run.vector_columns[-1]


def _mapped_rows(run: Run, column: str, plane: Plane, limit: int) -> Iterator[pa.Table]:
    """The rows to show, a piece at a time, with their coordinates in place of their vectors."""
    names = [name for name in run.columns if name not in run.vector_columns]
    wanted = np.unique(np.linspace(0, len(run) - 1, min(limit, len(run))).round().astype(np.int64))
    start = 0
    for batch in run.batches([*names, column]):
        here = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
        start += len(batch)
        if not len(here):
            continue
        kept = batch.take(pa.array(here))
        points = plane.coordinates(vectors_of(kept, column))
        kept = kept.drop_columns([column])
        for axis in range(2):
            values = points[:, axis]
            kept = kept.append_column(OWN[axis], pa.array(values, pa.float32(), mask=np.isnan(values)))
        yield kept


def _labels(run: Run, rows: pa.Table) -> dict[str, list[str | None]]:
    """What each label says of the rows, as words: true, false, or why there is no value."""
    ids = rows["sample_id"].to_pylist()
    wanted, found = {*ids}, {}
    for name in label_names(run.path):
        stored = read_label(run.path, run.spec.run_id, name)
        values = zip(*(stored[column].to_pylist() for column in ("sample_id", "value", "reason")), strict=True)
        words = {sample_id: _word(value, reason) for sample_id, value, reason in values if sample_id in wanted}
        found[f"label_{name}"] = [words.get(sample_id) for sample_id in ids]
    return found


def _word(value: bool | None, reason: str | None) -> str | None:
    return reason if value is None else str(value).lower()


def _thumbnails(run: Run, rows: pa.Table, options: ViewOptions) -> Thumbnails:
    wanted: dict[str, ImageOfRun] = {}
    columns = (rows[name].to_pylist() for name in ("image_id", "image", "input_index"))
    for image_id, reference, index in zip(*columns, strict=True):
        if len(wanted) >= options.thumbnails:
            break
        wanted.setdefault(image_id, ImageOfRun(reference, index))
    return make_thumbnails(run, wanted, options.images)


def _flat(rows: pa.Table, labels: dict[str, list[str | None]], risk: Risk | None, pictures: Thumbnails) -> pa.Table:
    """The rows with flat names and scalars only; a picture is one struct of bytes."""
    columns: dict[str, Any] = {name: rows[name] for name in ("pc1", "pc2")}
    columns |= {name: pa.array(words, pa.string()) for name, words in labels.items()}
    if risk is not None:
        columns["risk"] = pa.array([risk.by_sample.get(one) for one in rows["sample_id"].to_pylist()], pa.float64())
    if "first_token_top_logprobs" in rows.column_names:
        likeliest = [row[0] if row else None for row in rows["first_token_top_logprobs"].to_pylist()]
        columns["first_token_max"] = pa.array(likeliest, pa.float32())
    if pictures.webp:
        columns["thumbnail"] = pa.array(
            [
                {"bytes": pictures.webp[one], "path": None} if one in pictures.webp else None
                for one in rows["image_id"].to_pylist()
            ],
            THUMBNAIL,
        )
    rest = [name for name in rows.column_names if name not in (*columns, *LEFT_OUT)]
    for name, flat in zip(rest, flat_names(rest, columns), strict=True):
        columns[flat] = _joined(rows[name]) if pa.types.is_list(rows[name].type) else rows[name]
    return pa.table(columns)


def _joined(values: pa.ChunkedArray) -> pa.Array:
    return pa.array([None if row is None else " | ".join(map(str, row)) for row in values.to_pylist()], pa.string())


def flat_names(names: Iterable[str], taken: Iterable[str]) -> list[str]:
    """The names without dots, and none equal to another or to one that is taken, whatever the case.

    >>> flat_names(["a.b", "a_b", "PC1"], ["pc1"])
    ['a_b', 'a_b_2', 'PC1_2']
    """
    used, flat = {folded(name) for name in (*taken, *OWN)}, []
    for name in names:
        plain, number = name.replace(".", "_") or "column", 1
        while folded(plain if number == 1 else f"{plain}_{number}") in used:
            number += 1
        flat.append(plain if number == 1 else f"{plain}_{number}")
        used.add(folded(flat[-1]))
    return flat


def _notes(
    run: Run, rows: pa.Table, column: str, plane: Plane, pictures: Thumbnails, options: ViewOptions
) -> Iterator[Sequence[str | Option]]:
    shares = " and ".join(f"{100 * share:.1f} %" for share in plane.shares)
    yield (f"The map is of {column}: its two principal components have {shares} of the standardised variance.",)
    if len(rows) < len(run):
        yield (f"{len(rows):,} of {counted(len(run), 'sample')} are in the file, at equal distances; more with ",
               Option("limit", len(run)), ".")  # fmt: skip
    images = len(rows["image_id"].unique())
    if options.thumbnails and len(pictures.webp) < images:
        yield (f"{len(pictures.webp):,} of {counted(images, 'image')} have a thumbnail; more with ",
               Option("thumbnails", images), "." if not pictures.problem else ". Of the first without one: ",
               *pictures.problem)  # fmt: skip
