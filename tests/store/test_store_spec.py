"""run.json: what is written, what is read back, and when another call may resume."""

import dataclasses
import json
import typing
from collections.abc import Mapping

import pytest

from midsight.errors import DamagedRunError, MidsightError, Option, RunError
from midsight.store import RunWriter
from midsight.store.files import write_sealed_json
from midsight.store.same_spec import require_same_run
from midsight.store.spec import (
    DatasetSpec,
    EnvironmentSpec,
    ImportSpec,
    ModelSpec,
    PromptSpec,
    RequestSpec,
    RunSpec,
    read_spec,
    write_spec,
)
from support.made_up import (
    QUERY_0,
    VISION,
    WIDTHS,
    make_dataset_spec,
    make_environment,
    make_model_spec,
    make_prompt_spec,
    make_record,
    make_request,
    make_risk_spec,
    make_spec,
    write_run,
)

SPECS = (RequestSpec, ModelSpec, PromptSpec, DatasetSpec, EnvironmentSpec, RunSpec)
FULL = make_spec(
    format_version=1,
    run_id="another id",
    created="2025-01-02T03:04:05+00:00",
    request=make_request(layers=(0, 1, 31), positions=("vision_token", "image_mean"), store_dtype="float16"),
    model=make_model_spec(revision="c0ffee", fixes=("one", "two \u2028"), lora="unmerged"),
    prompt=make_prompt_spec(
        user="Größe? {question}", system="", template="/a/file", is_published=None, time="2026-01-31T23:59:58"
    ),
    dataset=make_dataset_spec(
        path="hf://owner/name",
        rows=10**7,
        revision="beef",
        images="/images",
        image_column="picture",
        question_column="q",
        answer_column="a",
        id_column="id",
        question="What is this?",
        split="test",
        allow_urls=True,
    ),
    environment=make_environment(midsight_version="9.9", midsight_commit="abc", packages={"numpy": "2", "a.b": "3"}),
    imported=ImportSpec(source="a", note="b", columns={"c.d": "e"}, left_out=("f",), attributes={"g": "h"}),
    risks=make_risk_spec(),
)
"""A spec in which no field has its default value."""


def test_every_field_survives_the_way_to_json_and_back(tmp_path):
    for spec in (FULL, make_spec()):
        write_spec(tmp_path, spec)
        back = read_spec(tmp_path)
        assert back == spec
        for part in ("request", "model", "prompt", "dataset", "environment"):
            assert type(getattr(back, part)) is type(getattr(spec, part))
    for kind, spec in zip(
        SPECS, (FULL.request, FULL.model, FULL.prompt, FULL.dataset, FULL.environment, FULL), strict=True
    ):
        for field in dataclasses.fields(kind):
            assert (
                field.default is dataclasses.MISSING
                or field.name == "format_version"
                or getattr(spec, field.name) != field.default
            ), f"{kind.__name__}.{field.name} has its default, so the test shows nothing"


def test_lists_are_stored_as_tuples_and_mappings_are_copied():
    vectors = dict(WIDTHS)
    spec = make_spec(request=make_request(layers=[0, 8]), vectors=vectors)
    vectors.clear()
    assert spec.request.layers == (0, 8)
    assert spec.vectors == WIDTHS


def test_every_run_has_its_own_random_id():
    specs = [
        RunSpec(**{f.name: getattr(FULL, f.name) for f in dataclasses.fields(FULL) if f.name != "run_id"}) for _ in "ab"
    ]
    assert specs[0].run_id != specs[1].run_id
    assert all(len(bytes.fromhex(spec.run_id)) == 16 for spec in specs)


def test_columns_are_listed_for_people(tmp_path):
    write_spec(tmp_path, make_spec())
    columns = json.loads((tmp_path / "run.json").read_text())["columns"]
    assert columns[0] == {"name": "sample_id", "type": "string"}
    assert columns[-1] == {
        "name": "query_token_representation.layer_1_residual",
        "type": "fixed_size_list<item: float>[8]",
    }


def test_the_list_says_what_input_columns_were_called(tmp_path):
    write_spec(tmp_path, make_spec(extras={"Answer": "string", "year": "int64"}))
    columns = json.loads((tmp_path / "run.json").read_text())["columns"]
    assert [column for column in columns if "input" in column] == [
        {"name": "input.Answer", "type": "string", "input": "Answer"},
        {"name": "year", "type": "int64", "input": "year"},
    ]


OPTIONS = {
    "request": {field.name: field.name for field in dataclasses.fields(RequestSpec)},
    "model": {
        "fingerprint": "model",
        "family_sha256": "family",
        "lora": "lora",
        "dtype": "dtype",
        "device_type": "device",
    },
    "prompt": {"user": "prompt", "system": "system", "template_sha256": "prompt_template"},
    "dataset": {
        "sha256": "data",
        "images": "images",
        "image_column": "image_column",
        "question_column": "question_column",
        "answer_column": "answer_column",
        "id_column": "id_column",
        "question": "question",
        "split": "split",
        "allow_urls": "allow_urls",
    },
    "environment": {},
}
"""Option of the call by field that decides the rows, by part of the spec."""

OTHER_VALUES = {
    "layers": (0,),
    "positions": ("image_mean",),
    "max_new_tokens": None,
    "store_dtype": "float16",
}
"""Another valid value, for fields that are not just flipped or lengthened."""


def another(name, value):
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(value, bool):
        return not value
    return f"{value or ''}x"


def part_with(part, field, value):
    return {part: dataclasses.replace(getattr(make_spec(), part), **{field: value})}


def shown(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("part", "field", "option"), [(part, *names) for part, options in OPTIONS.items() for names in options.items()]
)
def test_a_call_that_would_make_other_rows_is_refused_by_its_option(tmp_path, part, field, option):
    write_run(tmp_path, [make_record(0)])
    run_json = (tmp_path / "run.json").read_bytes()
    before = getattr(getattr(make_spec(), part), field)
    now = another(field, before)
    with pytest.raises(RunError) as caught, RunWriter(tmp_path, make_spec(**part_with(part, field, now))):
        pass
    sentence = (
        f"{tmp_path} was started {'without' if before is None else 'with'} ",
        Option(option, shown(before)),
        f", and this call has {'no ' if now is None else ''}",
        Option(option, shown(now)),
        "; use the old value or another ",
        Option("out"),
        ".",
    )
    if option in ("data", "model", "family", "prompt_template"):
        said = str(caught.value)
        assert said.startswith(f"{tmp_path} was started with {option}='")
        assert all(value is None or f"SHA-256 {str(value)[:16]})" in said for value in (before, now))
    else:
        assert caught.value.args == sentence
    assert (tmp_path / "run.json").read_bytes() == run_json


def test_another_dataset_is_named_with_its_rows(tmp_path):
    old = make_dataset_spec(path="old.jsonl", rows=2000, sha256="a" * 64)
    for new, said in (
        (
            make_dataset_spec(path="new.jsonl", rows=1, sha256="b" * 64),
            f"(2,000 rows, SHA-256 {'a' * 16}), and this call has data='new.jsonl' (1 row, SHA-256 {'b' * 16}); "
            "use the old one or another out.",
        ),
        (
            make_dataset_spec(path="old.jsonl", rows=2100, sha256="b" * 64),
            f"(2,000 rows, SHA-256 {'a' * 16}), and its content is now another (2,100 rows, SHA-256 {'b' * 16}); "
            "restore it or use another out.",
        ),
    ):
        with pytest.raises(RunError) as caught:
            require_same_run(tmp_path, make_spec(dataset=old), make_spec(dataset=new))
        assert str(caught.value) == f"{tmp_path} was started with data='old.jsonl' {said}"


@pytest.mark.parametrize("part", OPTIONS)
def test_fields_that_do_not_decide_the_rows_may_differ_on_resume(tmp_path, part):
    write_run(tmp_path, [make_record(0)])
    old = getattr(make_spec(), part)
    free = [field.name for field in dataclasses.fields(old) if field.name not in OPTIONS[part]]
    spec = make_spec(**{part: dataclasses.replace(old, **{name: getattr(getattr(FULL, part), name) for name in free})})
    with RunWriter(tmp_path, spec) as writer:
        assert getattr(writer.spec, part) == old


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"request": make_request(layers=(0, 8))},
            "with layers=[0, 1], and this call has layers=[0, 8]; use the old value or another out.",
        ),
        (
            {"prompt": make_prompt_spec(system="Look.")},
            "without system, and this call has system='Look.'; use the old value or another out.",
        ),
        (
            {"vectors": {VISION: 6}},
            f"with vector column {QUERY_0} of width 8, and this call has no vector column {QUERY_0}; "
            "use the old value or another out.",
        ),
        (
            {"vectors": {**WIDTHS, VISION: 7}},
            f"with vector column {VISION} of width 6, and this call has vector column {VISION} of width 7; "
            "use the old value or another out.",
        ),
        (
            {"extras": {"source": "json"}},
            "with input column source of type string, and this call has input column source of type json; "
            "use the old value or another out.",
        ),
        (
            {"extras": {**make_spec().extras, "colour": "string"}},
            "without input column colour, and this call has input column colour of type string; "
            "use the old value or another out.",
        ),
    ],
)
def test_the_sentence_names_the_first_difference(tmp_path, changes, sentence):
    write_run(tmp_path, [make_record(0)])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError) as caught, RunWriter(tmp_path, make_spec(**changes)):
        pass
    assert str(caught.value) == f"{tmp_path} was started {sentence}"
    assert (tmp_path / "run.json").read_bytes() == before


def test_a_resumed_run_keeps_its_id(tmp_path):
    write_run(tmp_path, [make_record(0)])
    with RunWriter(tmp_path, make_spec(run_id="of the call", created="later")) as writer:
        assert writer.spec.run_id == make_spec().run_id


def test_newer_formats_are_refused_by_name(tmp_path):
    write_spec(tmp_path, make_spec(format_version=2, environment=make_environment(midsight_version="9.0")))
    with pytest.raises(
        RunError,
        match=r"midsight 9\.0 in format 2; this is midsight .*, which reads formats up to 1: install a newer one",
    ) as caught:
        read_spec(tmp_path)
    assert not isinstance(caught.value, DamagedRunError)


def test_a_newer_format_with_an_unknown_structure_is_refused_and_not_called_damage(tmp_path):
    write_sealed_json(tmp_path / "run.json", {"format_version": 7, "environment": "elsewhere"})
    with pytest.raises(
        RunError, match=r"midsight \(of an unknown version\) in format 7; .* install a newer one"
    ) as caught:
        read_spec(tmp_path)
    assert not isinstance(caught.value, DamagedRunError)


def test_a_changed_run_json_is_noticed(tmp_path):
    write_spec(tmp_path, make_spec())
    file = tmp_path / "run.json"
    good = file.read_bytes()
    for position in range(0, len(good), 9):
        file.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        try:
            spec = read_spec(tmp_path)
        except (DamagedRunError, RunError):
            continue
        assert spec == make_spec(created=spec.created)
        assert chr(good[position]).isspace()


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"format_version": 1}'])
def test_a_file_that_is_not_a_run_json_is_damage(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedRunError, match=r"run\.json is damaged"):
        read_spec(tmp_path)


def sealed_with(tmp_path, path, value):
    """Write a run.json whose seal is right and in which the value at `path` is another, or gone if it is Ellipsis."""
    write_spec(tmp_path, make_spec())
    content = json.loads((tmp_path / "run.json").read_text())
    del content["seal"]
    *outer, last = path.split(".")
    inner = content
    for key in outer:
        inner = inner[key]
    inner[last] = value
    if value is ...:
        del inner[last]
    write_sealed_json(tmp_path / "run.json", content)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("colour", "red", "colour does not belong there"),
        ("model.colour", "red", "model.colour does not belong there"),
        ("run_id", ..., "run_id is missing"),
        ("model", ..., "model is missing"),
        ("dataset.split", ..., "dataset.split is missing"),
        ("columns", ..., "columns is not a list of the run's columns"),
        ("columns", [{"name": "sample_id"}], "columns is not a list of the run's columns"),
        ("model", [], "model is [] instead of an object"),
        ("model.name", 7, "model.name is 7 instead of text"),
        ("model.name", None, "model.name is null instead of text"),
        ("model.revision", 7, "model.revision is 7 instead of text"),
        ("model.layers", "7", 'model.layers is "7" instead of a whole number'),
        ("model.layers", 7.0, "model.layers is 7.0 instead of a whole number"),
        ("model.layers", True, "model.layers is true instead of a whole number"),
        ("request.answers", 1, "request.answers is 1 instead of true or false"),
        ("request.layers", 3, "request.layers is 3 instead of a list"),
        ("request.layers", [0, "1"], 'request.layers[1] is "1" instead of a whole number'),
        ("request.store_dtype", "float64", 'request.store_dtype is "float64" instead of float32 or float16'),
        ("request.store_dtype", [], "request.store_dtype is [] instead of float32 or float16"),
        ("vectors", [], "vectors is [] instead of an object"),
        ("vectors", {VISION: "6"}, f'vectors.{VISION} is "6" instead of a whole number'),
        ("environment.packages", {"torch": None}, "environment.packages.torch is null instead of text"),
        ("prompt.user", ["x" * 99], f'prompt.user is ["{"x" * 38}... instead of text'),
    ],
)
def test_each_kind_of_wrong_json_is_damage_and_named(tmp_path, path, value, said):
    sealed_with(tmp_path, path, value)
    with pytest.raises(DamagedRunError) as caught:
        read_spec(tmp_path)
    file = tmp_path / "run.json"
    assert str(caught.value) == f"{file} is damaged: {said}; restore it from a copy, or extract into another folder."


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("vectors", {"middle": 6}, "'middle' is not the name of a tap"),
        ("extras", {"when": "date"}, "The input column 'when' has the type 'date'"),
    ],
)
def test_a_run_json_with_impossible_columns_is_damage(tmp_path, path, value, said):
    sealed_with(tmp_path, path, value)
    with pytest.raises(DamagedRunError, match=f"run.json is damaged: {said}"):
        read_spec(tmp_path)


def test_a_folder_without_run_json_is_not_a_run(tmp_path):
    with pytest.raises(MidsightError, match=r"is not a run folder: it has no run\.json"):
        read_spec(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": {"query_token_representation.layer_x": 4}}, "is not the name of a tap"),
        ({"extras": {"when": "date"}}, "input column 'when' has the type 'date'"),
        ({"store_dtype": "bfloat16"}, 'request.store_dtype is "bfloat16" instead of float32 or float16'),
        ({"request": make_request(layers={1})}, "request of a run cannot be written as JSON"),
        ({"model": make_model_spec(hidden_size=float("nan"))}, "model of a run cannot be written as JSON"),
        ({"dataset": None}, "dataset of a run cannot be written as JSON: dataset is null instead of an object"),
    ],
)
def test_an_impossible_spec_is_refused(changes, said):
    with pytest.raises(MidsightError, match=said):
        make_spec(**changes)


@pytest.mark.parametrize("kind", SPECS)
def test_specs_are_frozen_and_every_argument_is_named(kind):
    assert kind.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(kind))
    assert not any(hint in (dict, Mapping, typing.Any) for hint in typing.get_type_hints(kind).values())
