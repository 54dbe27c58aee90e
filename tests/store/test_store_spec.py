import json

import pytest

from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.store import RunWriter
from midsight.store.spec import RunSpec, read_spec, write_spec
from store.made_up import QUERY_0, VISION, make_record, make_spec, write_run


def test_round_trip(tmp_path):
    spec = make_spec(options={"--layers": (0, 8), "--prompt": "Größe? \u2028", "--limit": None})
    write_spec(tmp_path, spec)
    assert read_spec(tmp_path) == spec
    assert spec.options["--layers"] == [0, 8]


def test_columns_are_listed_for_people(tmp_path):
    write_spec(tmp_path, make_spec())
    columns = json.loads((tmp_path / "run.json").read_text())["columns"]
    assert columns[0] == {"name": "sample_id", "type": "string"}
    assert columns[-1] == {
        "name": "query_token_representation.layer_1_residual",
        "type": "fixed_size_list<item: float>[8]",
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"options": {"--layers": [0, 2], "--prompt": "?"}},
            r"with --layers \[0, 1\], and this call is with --layers \[0, 2\]",
        ),
        ({"options": {"--layers": [0, 1]}}, 'with --prompt "{question}", and this call is without --prompt'),
        (
            {"options": {"--layers": [0, 1], "--prompt": "{question}", "--new": 1}},
            "without --new, and this call is with --new 1",
        ),
        ({"vectors": {VISION: 6}}, f"with vector column {QUERY_0} 8, and this call is without"),
        ({"answers": False}, "with answers true, and this call is with answers false"),
        (
            {"extras": {"source": "json"}},
            'with extra column source "string", and this call is with extra column source "json"',
        ),
        ({"store_dtype": "float16"}, 'with store dtype "float32", and this call is with store dtype "float16"'),
    ],
)
def test_resuming_differently_is_refused_by_name(tmp_path, changes, said):
    write_run(tmp_path, [make_record(0)])
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RunError, match=said) as caught, RunWriter(tmp_path, make_spec(**changes)):
        pass
    assert str(caught.value).endswith("use the old value or another --out.")
    assert (tmp_path / "run.json").read_bytes() == before


def test_another_environment_may_resume(tmp_path):
    write_run(tmp_path, [make_record(0)])
    with RunWriter(tmp_path, make_spec(environment={"device": "cuda"}, created="later")) as writer:
        assert writer.spec.environment == {}


def test_newer_formats_are_refused_by_name(tmp_path):
    write_spec(tmp_path, make_spec(format_version=3, midsight_version="9.0"))
    with pytest.raises(RunError, match=r"midsight 9\.0 in format 3; this is midsight .*: install a newer one"):
        read_spec(tmp_path)


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
def test_what_is_no_run_json_is_damage(tmp_path, text):
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedRunError, match=r"run\.json is damaged"):
        read_spec(tmp_path)


def test_a_folder_without_run_json_is_no_run(tmp_path):
    with pytest.raises(MidsightError, match=r"is no run folder: it has no run\.json"):
        read_spec(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vectors": {"query_token_representation.layer_x": 4}}, "names no tap"),
        ({"extras": {"when": "date"}}, "extra column 'when' has the type 'date'"),
        ({"store_dtype": "bfloat16"}, "store dtype 'bfloat16' is unknown"),
        ({"options": {"--x": {1}}}, "options of a run cannot be written as JSON"),
        ({"options": {"--x": float("nan")}}, "options of a run cannot be written as JSON"),
    ],
)
def test_a_spec_that_cannot_be_is_refused(changes, said):
    with pytest.raises(MidsightError, match=said):
        make_spec(**changes)


def test_specs_are_frozen():
    assert RunSpec.__dataclass_params__.frozen  # type: ignore[attr-defined]
