import io
import json
import struct
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midsight.errors import MidsightError
from midsight.records import Record
from midsight.store import RunWriter, open_run, parts, writer
from midsight.store.schema import extra_columns, is_vector, records_to_table, run_schema
from midsight.taps.tap import Tap
from support.made_up import QUERY_0, QUERY_1, QUERY_1_RAW, VISION, WIDTHS, files_of, make_record, make_spec, write_run

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOAT32 = st.floats(width=32, allow_nan=False)
FINITE32 = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
INT64 = st.integers(-(2**63), 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
)
EXTRAS = {
    "answer": "string",
    "Größe": "int64",
    "x.list.element": "float64",
    "b": "bool",
    "query_token_representation": "json",
}
STORED_AS = extra_columns(EXTRAS)


def tuples(of):
    return st.lists(of, max_size=4).map(tuple)


def vectors(width):
    return st.lists(FINITE32, min_size=width, max_size=width).map(lambda values: np.array(values, np.float32))


RECORDS = st.builds(
    Record,
    sample_id=TEXT,
    input_index=st.integers(0, 2**40),
    image_id=st.sampled_from("abc"),
    image=TEXT,
    question=TEXT,
    reference_answers=tuples(TEXT),
    extras=st.fixed_dictionaries(
        {},
        optional={
            "answer": st.none() | TEXT,
            "Größe": INT64,
            "x.list.element": st.floats(allow_nan=False),
            "b": st.booleans(),
            "query_token_representation": JSON,
        },
    ),
    answer=st.none() | TEXT,
    answer_token_ids=tuples(INT64),
    answer_logprobs=tuples(FLOAT32),
    finish_reason=st.sampled_from(["stop", "length"]),
    first_token_entropy=FLOAT32,
    first_token_top_ids=tuples(INT64),
    first_token_top_logprobs=tuples(FLOAT32),
    prompt_tokens=INT64,
    vectors=st.fixed_dictionaries({name: vectors(width) for name, width in WIDTHS.items()}),
)


def bits(values):
    """Floats as the text of their bytes, so that -0.0 and 0.0 differ."""
    if isinstance(values, float):
        return struct.pack("<d", values).hex()
    return [bits(value) for value in values] if isinstance(values, list | tuple) else values


@settings(max_examples=25, deadline=None)
@given(
    st.lists(RECORDS, min_size=1, max_size=8, unique_by=(lambda r: r.sample_id, lambda r: r.input_index)),
    st.sampled_from([0.0, 60.0]),
)
def test_what_is_written_is_what_is_read(records, commit_seconds):
    spec = make_spec(extras=EXTRAS)
    with tempfile.TemporaryDirectory() as folder:
        write_run(Path(folder), records, spec, commit_seconds=commit_seconds)
        run = open_run(folder)
        rows = run.table().to_pylist()
        matrices = {name: run.matrix(name) for name in WIDTHS}
    records.sort(key=lambda record: record.input_index)
    assert len(run) == len(rows) == len(records)
    for i, (record, row) in enumerate(zip(records, rows, strict=True)):
        for name, type_ in EXTRAS.items():
            stored, given_ = row[STORED_AS[name]], record.extras.get(name)
            if type_ == "json" and isinstance(stored, str):
                stored = json.loads(stored)
            assert bits(stored) == bits(given_), name
        for name in set(row) - {*STORED_AS.values()}:
            value = getattr(record, name)
            assert bits(row[name]) == bits(list(value) if isinstance(value, tuple) else value), name
        for name, matrix in matrices.items():
            assert matrix.dtype == np.float32
            assert matrix[i].tobytes() == record.vectors[name].tobytes(), name


def test_rows_come_back_in_dataset_order(tmp_path):
    order = np.random.default_rng(0).permutation(30)
    records = {int(i): make_record(int(i), image_id=f"{i}") for i in order}
    write_run(tmp_path, records.values(), commit_seconds=0)
    assert len(files_of(tmp_path, ".parquet")) == 30
    run = open_run(tmp_path)
    assert run.sample_ids() == [f"s{i}" for i in range(30)]
    assert run.table().column("question").to_pylist() == [records[i].question for i in range(30)]
    for name in WIDTHS:
        assert (run.matrix(name) == np.stack([records[i].vectors[name] for i in range(30)])).all()


def test_a_layer_is_found_by_name_and_number(tmp_path):
    record = make_record(0)
    write_run(tmp_path, [record])
    run = open_run(tmp_path)
    for column, call in {
        VISION: (VISION,),
        QUERY_0: (QUERY_0,),
        QUERY_1: ("query_token_representation", 1),
        QUERY_1_RAW: ("query_token_representation", -1, True),
    }.items():
        assert (run.matrix(*call)[0] == record.vectors[column]).all()
    assert (run.matrix("query_token_representation", -2)[0] == record.vectors[QUERY_0]).all()
    assert run.vector_columns == tuple(WIDTHS)
    assert run.taps == (Tap("query_token", 0), Tap("query_token", 1), Tap("query_token", 1, "residual"))
    assert run.columns == tuple(run_schema(run.spec.columns).names)


@pytest.mark.parametrize(
    "call",
    [
        ("query_token_representation", 2),
        ("query_token_representation", -3),
        ("query_token_representation", 0, True),
        ("vision_token_representation", 1),
        (VISION, 1),
        (VISION, None, True),
        ("query_token", 1),
        ("question",),
    ],
)
def test_what_the_run_does_not_hold_is_refused_with_what_it_holds(tmp_path, call):
    write_run(tmp_path, [make_record(0)])
    with pytest.raises(MidsightError, match=f"does not hold the vectors '{call[0]}'.*; it holds {VISION}, {QUERY_0}, "):
        open_run(tmp_path).matrix(*call)


def test_a_position_without_a_layer_says_which_layers_there_are(tmp_path):
    write_run(tmp_path, [make_record(0)])
    with pytest.raises(MidsightError, match=r"has query_token_representation at the layers 0, 1; .* layer=1\."):
        open_run(tmp_path).matrix("query_token_representation")


def test_an_empty_run_has_columns_and_no_rows(tmp_path):
    write_run(tmp_path, [])
    run = open_run(str(tmp_path))
    assert (len(run), run.sample_ids(), run.failures()) == (0, [], [])
    assert run.matrix(QUERY_0).shape == (0, 8)
    assert run.table().num_rows == 0
    assert run.table().schema.names == [name for name in run.columns if name not in WIDTHS]


def test_half_precision_comes_back_as_float32_of_what_was_stored(tmp_path):
    record = make_record(0)
    write_run(tmp_path, [record], make_spec(store_dtype="float16"))
    matrix = open_run(tmp_path).matrix(QUERY_0)
    assert matrix.dtype == np.float32
    assert (matrix[0] == record.vectors[QUERY_0].astype(np.float16).astype(np.float32)).all()
    assert (matrix[0] != record.vectors[QUERY_0]).any()


def test_the_callers_array_may_change_after_add(tmp_path):
    record = make_record(0)
    kept = record.vectors[QUERY_0].copy()
    with RunWriter(tmp_path, make_spec()) as writer:
        writer.add(record)
        record.vectors[QUERY_0][:] = 0
    assert (open_run(tmp_path).matrix(QUERY_0)[0] == kept).all()


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_parts_are_encoded_as_specified(tmp_path, store_dtype):
    spec = make_spec(store_dtype=store_dtype)
    write_run(tmp_path, [make_record(i) for i in range(40)], spec)
    (file,) = files_of(tmp_path, ".parquet")
    metadata = pq.read_metadata(file)
    chunks = {}
    for i in range(metadata.num_columns):
        chunk = metadata.row_group(0).column(i)
        chunks[chunk.path_in_schema] = chunk
    for name in WIDTHS:
        chunk = chunks[f"{name}.list.element"]
        encodings = {"PLAIN", "BYTE_STREAM_SPLIT", "RLE_DICTIONARY"} & set(chunk.encodings)
        assert encodings == {"BYTE_STREAM_SPLIT" if store_dtype == "float32" else "PLAIN"}
    for path in ("sample_id", "question", "meta", "reference_answers.list.element"):
        assert "RLE_DICTIONARY" in chunks[path].encodings
    assert {chunk.compression for chunk in chunks.values()} == {"ZSTD"}
    assert pq.read_schema(file).equals(run_schema(spec.columns))


def test_pages_carry_checksums_for_every_reader(tmp_path):
    write_run(tmp_path, [make_record(i) for i in range(40)])
    (file,) = files_of(tmp_path, ".parquet")
    chunk = pq.read_metadata(file).row_group(0).column(run_schema(make_spec().columns).names.index(QUERY_0))
    data = bytearray(file.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 4
    file.write_bytes(data)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.ParquetFile(file, page_checksum_verification=True).read(columns=[QUERY_0])


def test_row_groups_stay_under_their_limit():
    table = records_to_table([make_record(i) for i in range(100)], make_spec().columns)
    assert table.nbytes > 20_000
    metadata = pq.read_metadata(io.BytesIO(parts.encode_part(table, row_group_bytes=10_000)))
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sum(sizes) == 100
    assert len(sizes) > 2
    assert max(sizes) * table.nbytes / 100 < 11_000


def test_several_row_groups_are_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "encode_part", lambda table: parts.encode_part(table, row_group_bytes=5_000))
    records = [make_record(i) for i in range(60)]
    write_run(tmp_path, records)
    run = open_run(tmp_path)
    assert len(run.commits) == 1
    assert run.commits[0].part is not None
    assert len(run.commits[0].part.chunk_crc32) > 3
    assert (run.matrix(QUERY_1) == np.stack([record.vectors[QUERY_1] for record in records])).all()
    assert run.sample_ids() == [record.sample_id for record in records]


def test_only_the_columns_asked_for_are_read(tmp_path):
    write_run(
        tmp_path, [replace(make_record(0), extras={})], make_spec(extras={"query_token_representation": "string"})
    )
    run = open_run(tmp_path)
    assert any(is_vector(field) for field in run_schema(run.spec.columns))
    for columns in ([QUERY_1], ["query_token_index", "answer"], ["input.query_token_representation"]):
        (batch,) = run.batches(columns)
        assert batch.schema.names == columns
