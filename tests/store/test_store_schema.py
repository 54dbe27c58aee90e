import dataclasses
from typing import get_args

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import RunError, SampleError
from midsight.records import ONLY_WITH, Record
from midsight.store.schema import extra_columns, folded, is_vector, records_to_table, run_schema
from midsight.taps.tap import POSITIONS, Stage, Tap
from support.made_up import QUERY_1_RAW, WIDTHS, make_record, make_risk_spec, make_spec

STAGES = get_args(Stage)


def test_every_field_of_a_record_is_a_column_in_order():
    spec = make_spec(risks=make_risk_spec())
    expected = []
    for field in dataclasses.fields(Record):
        if field.name == "extras":
            expected.extend(spec.extras)
        elif field.name == "vectors":
            expected.extend(spec.vectors)
        else:
            expected.append(field.name)
    assert run_schema(spec.columns).names == expected


def test_types_follow_the_annotations():
    schema = run_schema(make_spec().columns)
    expected = {
        "sample_id": pa.string(),
        "input_index": pa.int64(),
        "reference_answers": pa.list_(pa.string()),
        "answer_token_ids": pa.list_(pa.int64()),
        "answer_logprobs": pa.list_(pa.float32()),
        "finish_reason": pa.string(),
        "first_token_entropy": pa.float32(),
        "meta": pa.string(),
        "score": pa.float64(),
        "hard": pa.bool_(),
        QUERY_1_RAW: pa.list_(pa.float32(), 8),
    }
    assert {name: schema.field(name).type for name in expected} == expected
    assert schema.field("answer").nullable
    assert not schema.field("question").nullable


def test_a_run_without_answers_has_no_answer_columns():
    full, bare = (run_schema(make_spec(answers=answers).columns).names for answers in (True, False))
    marked = {field.name for field in dataclasses.fields(Record) if "answers" in field.metadata.get(ONLY_WITH, ())}
    assert set(full) - set(bare) == marked != set()


def test_a_run_with_risks_has_the_first_token_even_without_answers():
    mute, silent = (run_schema(make_spec(answers=False, risks=risk).columns) for risk in (make_risk_spec(), None))
    first_token = ["first_token_entropy", "first_token_top_ids", "first_token_top_logprobs"]
    assert [name for name in mute.names if name not in silent.names] == [*first_token, "risk"]
    assert mute.field("risk").type == pa.float64()


def test_half_precision_vectors():
    schema = run_schema(make_spec(store_dtype="float16").columns)
    assert all(schema.field(name).type == pa.list_(pa.float16(), width) for name, width in WIDTHS.items())


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("source", "source"),
        ("input.source", "input.source"),
        ("answer", "input.answer"),
        ("input.answer", "input.input.answer"),
        ("query_token_representation", "input.query_token_representation"),
        ("query_token_representation.layer_99", "input.query_token_representation.layer_99"),
        ("answers", "answers"),
        ("Answer", "input.Answer"),
        ("INPUT.answer", "input.INPUT.answer"),
        ("ｑuestion", "input.ｑuestion"),
        ("Query_Token_Representation.layer_0", "input.Query_Token_Representation.layer_0"),
        ("answer ", "answer "),
        ("", "input."),
        ("input.", "input.input."),
        (".", "."),
        ("a\0b", "a\ufffdb"),
    ],
)
def test_extra_columns_keep_their_name_unless_it_is_ours(name, column):
    assert extra_columns([name]) == {name: column}


def test_of_names_that_other_tools_take_for_one_the_first_stays():
    assert extra_columns(
        ["Year", "year", "YEAR", "input.year", "x\ufffd", "x\0", "Größe", "Gro\u0308ße", "GRÖSSE"]
    ) == {
        "Year": "Year",
        "year": "input.input.year",
        "YEAR": "input.input.input.YEAR",
        "input.year": "input.year",
        "x\ufffd": "x\ufffd",
        "x\0": "input.x\ufffd",
        "Größe": "Größe",
        "Gro\u0308ße": "input.Gro\u0308ße",
        "GRÖSSE": "input.input.GRÖSSE",
    }


OWN_NAMES = [field.name for field in dataclasses.fields(Record)] + [*WIDTHS]
INPUT_NAMES = st.builds(
    "{}{}{}".format,
    st.sampled_from(["", "input.", "input.input."]),
    st.text(max_size=8) | st.sampled_from([*OWN_NAMES, "", "x", "é", "e\u0301", "\0", "\ufffd"]),
    st.sampled_from(["", ".", ".layer_0", "_2"]),
).flatmap(lambda name: st.sampled_from([name, name.upper(), name.title()]))


@given(st.lists(INPUT_NAMES, unique=True))
def test_no_two_columns_share_a_name_whatever_the_input_columns_are_called(extras):
    names = run_schema(make_spec(extras=dict.fromkeys(extras, "string")).columns).names
    assert len(set(map(folded, names))) == len(names)


@given(st.lists(st.builds(Tap, st.sampled_from(POSITIONS), st.integers(0, 99), st.sampled_from(STAGES)), unique=True))
def test_vector_columns_are_the_taps_in_their_order_and_parse_back(taps):
    schema = run_schema(make_spec(vectors={str(tap): 4 + tap.layer for tap in taps}).columns)
    columns = [field for field in schema if is_vector(field)]
    assert [Tap.parse(field.name) for field in columns] == taps
    assert [field.type.list_size for field in columns] == [4 + tap.layer for tap in taps]


def test_json_extras_keep_order_and_letters():
    meta = {"b": "Zürich", "a": [1, None, 2.5]}
    table = records_to_table([make_record(0, extras={"meta": meta})], make_spec().columns)
    assert table.column("meta").to_pylist() == ['{"b": "Zürich", "a": [1, null, 2.5]}']
    assert table.column("source").to_pylist() == [None]


def test_numbers_that_json_does_not_have_become_null():
    meta = {"bbox": [float("nan"), 1.5, float("-inf")], "deep": {"x": (float("inf"),)}}
    table = records_to_table([make_record(0, extras={"meta": meta})], make_spec().columns)
    assert table.column("meta").to_pylist() == ['{"bbox": [null, 1.5, null], "deep": {"x": [null]}}']


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"extras": {"year": "soon"}}, "year of sample 's1' does not fit its column of type int64"),
        ({"extras": {"year": 2**70}}, "year of sample 's1'"),
        ({"extras": {"year": 0.5}}, "year of sample 's1' does not fit its column of type int64: it is 0.5"),
        ({"extras": {"score": True}}, "score of sample 's1' does not fit its column of type float64: it is True"),
        ({"extras": {"meta": {1, 2}}}, "'meta' of sample 's1' cannot be written as JSON"),
        ({"extras": {"colour": "red"}}, "the input column 'colour', which this run does not have"),
        ({"question": "\ud800"}, "question of sample 's1'"),
        ({"question": None}, "question of sample 's1' is missing"),
    ],
)
def test_a_value_that_does_not_fit_names_its_sample(changes, said):
    with pytest.raises(SampleError, match=said):
        records_to_table([make_record(0), make_record(1, **changes)], make_spec().columns)


def with_vector(name, values):
    record = make_record(1)
    vector = record.vectors[name].copy()
    vector[0] = values
    return dataclasses.replace(record, vectors={**record.vectors, name: vector})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(value):
    with pytest.raises(SampleError, match="layer_1_residual of sample 's1' holds values that are not finite"):
        records_to_table([make_record(0), with_vector(QUERY_1_RAW, value)], make_spec().columns)


def test_vectors_that_overflow_half_precision_are_refused():
    record = with_vector(QUERY_1_RAW, 70_000.0)
    records_to_table([record], make_spec().columns)
    with pytest.raises(SampleError, match="reaches 70000, which float16 cannot hold; use store_dtype='float32'"):
        records_to_table([record], make_spec(store_dtype="float16").columns)


@pytest.mark.parametrize("widths", [{**WIDTHS, QUERY_1_RAW: 9}, {}])
def test_other_vectors_than_the_spec_names_are_refused(widths):
    record = make_record(0, make_spec(vectors=widths))
    with pytest.raises(RunError, match=r"this run stores vision_only_representation \[6\]"):
        records_to_table([record], make_spec().columns)
