import io
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from midsight.reports.summary import AnswerSummary, VectorSummary, summarise
from midsight.reports.terminal import render_summary
from midsight.samples.sample import Failure
from midsight.store import RunWriter, open_run
from midsight.store import schema as store_schema
from support.made_up import (
    QUERY_0,
    QUERY_1,
    QUERY_1_RAW,
    VISION,
    WIDTHS,
    make_failure,
    make_record,
    make_spec,
    write_run,
)


@pytest.fixture
def run(tmp_path):
    """Eight rows in several parts, two failures; the vision column is the same in every row."""
    with RunWriter(tmp_path, make_spec(), commit_seconds=0) as writer:
        for i in range(8):
            record = make_record(i)
            writer.add(replace(record, vectors={**record.vectors, VISION: np.arange(6, dtype=np.float32)}))
        writer.fail(make_failure(9, "The image [red] is not an image."))
        writer.fail(make_failure(8))
    return open_run(tmp_path)


def print_summary(run, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(render_summary(summarise(run)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_counts(run):
    assert len(run.commits) > 2
    summary = summarise(run)
    assert (summary.rows, summary.images, summary.model) == (8, 3, "made-up")
    assert summary.failures == (make_failure(8), make_failure(9, "The image [red] is not an image."))
    assert summary.layers == (0, 1)
    assert summary.path == str(run.path)


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["0.png", "0.png", "1.png"], "2"),
        (["a.png", "b.png", "c.png"], "2 by their pixels, 3 by name"),
        (["", "", ""], "2"),
    ],
)
def test_equal_pixels_under_two_names_are_explained(tmp_path, names, shown):
    write_run(tmp_path, [make_record(n + 1, image=name) for n, name in enumerate(names)])  # two of them are one image
    line = next(line for line in print_summary(open_run(tmp_path)).splitlines() if line.startswith("images"))
    assert line.split(maxsplit=1)[1].strip() == shown


def test_columns(run):
    columns = {column.name: column for column in summarise(run).columns}
    assert tuple(columns) == run.columns
    assert (columns["year"].type, columns["year"].shape) == ("int64", (8,))
    assert (columns[QUERY_1].type, columns[QUERY_1].shape) == ("float", (8, 8))


def test_vectors_against_numpy(run):
    for vector in summarise(run).vectors:
        norms = np.linalg.norm(run.matrix(vector.name).astype(np.float64), axis=1)
        assert vector.width == WIDTHS[vector.name]
        assert vector.mean_norm == pytest.approx(norms.mean(), rel=1e-12)
        assert vector.min_norm == pytest.approx(norms.min(), rel=1e-12)
        assert vector.max_norm == pytest.approx(norms.max(), rel=1e-12)
        assert vector.constant == (vector.name == VISION)
        assert vector.non_finite == 0


def test_answers(run):
    lengths = [i % 4 for i in range(8)]
    assert summarise(run).answers == AnswerSummary({"stop": 6, "length": 2}, sum(lengths) / 8)


def test_one_row_is_not_called_constant(tmp_path):
    write_run(tmp_path, [make_record(0)])
    assert not any(vector.constant for vector in summarise(open_run(tmp_path)).vectors)


@pytest.mark.parametrize("row", [1, 3, 8])
@pytest.mark.parametrize(("change", "is_constant"), [(1e-6, True), (1e-4, False)])
def test_one_row_that_differs_by_more_than_rounding_counts(tmp_path, row, change, is_constant):
    records = [make_record(i, vectors=make_record(0).vectors) for i in range(9)]
    changed = records[row].vectors[QUERY_0].copy()
    changed[-1] += change * np.linalg.norm(changed)
    records[row] = replace(records[row], vectors={**records[row].vectors, QUERY_0: changed})
    write_run(tmp_path, records, commit_seconds=0)
    constant = {vector.name: vector.constant for vector in summarise(open_run(tmp_path)).vectors}
    assert constant == {VISION: True, QUERY_0: is_constant, QUERY_1: True, QUERY_1_RAW: True}


def test_rows_that_are_not_finite_are_counted_and_left_out_of_the_norms(tmp_path, monkeypatch):
    write_run(tmp_path, [make_record(0)])
    monkeypatch.setattr(store_schema, "_vectors", unchecked_vectors)
    bad = [np.full(8, np.nan, np.float32), np.full(8, np.inf, np.float32)]
    write_run(tmp_path, [make_record(i, vectors={**make_record(i).vectors, QUERY_0: bad[i - 1]}) for i in (1, 2)])
    (vector,) = (vector for vector in summarise(open_run(tmp_path)).vectors if vector.name == QUERY_0)
    norm = float(np.linalg.norm(make_record(0).vectors[QUERY_0].astype(np.float64)))
    assert vector.non_finite == 2
    assert vector.max_norm == pytest.approx(norm, rel=1e-12)
    assert "2 rows not finite" in print_summary(open_run(tmp_path))


def unchecked_vectors(records, field):
    """What a writer would store that lets everything through."""
    values = np.concatenate([record.vectors[field.name] for record in records])
    return pa.FixedSizeListArray.from_arrays(pa.array(values, pa.float32()), field.type.list_size)


def test_norms_do_not_overflow_half_precision(tmp_path):
    record = make_record(0)
    large = {name: np.full(width, 60_000, np.float32) for name, width in WIDTHS.items()}
    write_run(tmp_path, [replace(record, vectors=large)], make_spec(store_dtype="float16"))
    (first, *_) = summarise(open_run(tmp_path)).vectors
    assert first.max_norm is not None
    assert math.isclose(first.max_norm, math.sqrt(6) * 59_999, rel_tol=1e-3)


@pytest.mark.parametrize("answers", [True, False])
def test_an_empty_run_has_a_summary(tmp_path, answers):
    write_run(tmp_path, [], make_spec(answers=answers))
    summary = summarise(open_run(tmp_path))
    assert summary.vectors[0] == VectorSummary(VISION, 6, None, None, None, constant=False, non_finite=0)
    assert summary.answers == (AnswerSummary({}, None) if answers else None)
    assert "0 stored, 0 failed" in print_summary(open_run(tmp_path))


def test_the_terminal_shows_what_matters(run):
    text = print_summary(run)
    for part in (
        "made-up",
        "8 stored, 2 failed",
        "6 stop, 2 length; 1.5 tokens on average",
        "8 x 6",
        "CONSTANT",
        "The image [red] is not an image.",
    ):
        assert part in text
    assert text.count("CONSTANT") == 1
    assert all(column in text for column in run.columns)


@pytest.mark.parametrize("residual", ["", "_residual"])
def test_no_number_and_no_note_is_cut_short_in_80_columns(tmp_path, residual):
    name = f"image_mean_representation.layer_31{residual}"
    spec = make_spec(vectors={name: 3072})
    records = [make_record(i, spec, vectors={name: np.full(3072, 12345.678, np.float32)}) for i in range(2)]
    write_run(tmp_path, records, spec)
    text = print_summary(open_run(tmp_path), width=80)
    norm = f"{math.sqrt(3072) * 12345.678:.4g}"
    assert text.count(norm) == 3
    assert "2 x 3072" in text
    assert "CONSTANT" in text
    assert "1 column of float32" in text
    assert "…" not in text


def test_the_terminal_counts_failures_beyond_the_first(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        for i in range(12):
            writer.fail(Failure(f"s{i}", i, f"reason {i}."))
    text = print_summary(open_run(tmp_path))
    assert "12 failed, the first 10 of them" in text
    assert "reason 9." in text
    assert "reason 10." not in text


def test_the_terminal_lists_input_columns_with_another_name(tmp_path):
    extras = {"Answer": "int64", "year": "int64"}
    write_run(tmp_path, [make_record(0, extras=dict.fromkeys(extras, 1))], make_spec(extras=extras))
    run = open_run(tmp_path)
    assert summarise(run).renamed == {"Answer": "input.Answer"}
    assert "input columns stored under another name: Answer as input.Answer" in print_summary(run)
