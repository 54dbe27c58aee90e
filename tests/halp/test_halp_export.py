"""`--format halp`: what is written is what the probe scripts read, array by array."""

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from midsight.cli import app
from midsight.errors import MidsightError
from midsight.halp import export
from midsight.halp.export import export_halp
from midsight.store import RunWriter, open_run
from midsight.store import optional as optional_packages
from support.halp_files import QUERY_TOKEN, VISION_TOKEN, make_sample, read_parts, write_part
from support.made_up import make_model_spec, make_record, make_request, make_spec, write_run

PIXELS = "processor_pooled_pixels"
COLUMNS = {
    "vision_only_representation": 6,
    PIXELS: 4,
    **{f"{position}.layer_{layer}": 8 for position in (VISION_TOKEN, QUERY_TOKEN) for layer in (0, 1)},
    f"{QUERY_TOKEN}.layer_1_residual": 8,
    "image_mean_representation.layer_0": 8,
}


def spec_of(columns=None, **changes):
    return make_spec(vectors=columns or COLUMNS, extras={}, **changes)


def record(index, spec, **changes):
    return make_record(index, spec, **{"extras": {}, **changes})


def same_bits(vector, other):
    return vector is not None and vector.tobytes() == other.tobytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Thirty rows in two shards, stored in an order that is not the dataset's."""
    path, spec = tmp_path_factory.mktemp("halp") / "run", spec_of()
    order = np.random.default_rng(3).permutation(30)
    for number in (0, 1):
        with RunWriter(path, spec, shard=(number, 2), commit_bytes=2_000) as writer:
            for i in order[number::2]:
                writer.add(record(int(i), spec, question=f"Is row {i} a café?"))
    return open_run(path)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(export, "SAMPLES_PER_PART", 7)


def test_a_reader_of_the_original_files_finds_every_array(run, tmp_path, small_parts):
    done = export_halp(run, tmp_path / "out")
    assert (done.parts, done.samples) == (5, 30)
    names = [f"phi_4_multimodal_embeddings_part_{number:03}.h5" for number in range(1, 6)]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    found = read_parts(tmp_path / "out")
    table = run.table().to_pylist()
    assert [*found] == sorted(found, key=lambda one: (int(one[1:]) // 7, one)), "by part, and by name in it"
    assert {*found} == {row["sample_id"] for row in table}
    for index, row in enumerate(table):
        stored = found[row["sample_id"]]
        references = row["reference_answers"]
        assert stored.texts == {
            "image_id": row["image"],
            "question": row["question"],
            "answer": row["answer"],
            "ground_truth_answer": "" if not references else references[0] if len(references) == 1 else '["yes", "no"]',
        }
        vectors = make_record(index, spec_of()).vectors
        assert same_bits(stored.vision_only, vectors["vision_only_representation"])
        assert {*stored.layers} == {VISION_TOKEN, QUERY_TOKEN}
        for position, layers in stored.layers.items():
            assert {*layers} == {0, 1}
            for layer, vector in layers.items():
                assert same_bits(vector, vectors[f"{position}.layer_{layer}"])


def test_the_files_say_what_they_hold(run, tmp_path):
    export_halp(run, tmp_path / "out")
    (file,) = (tmp_path / "out").iterdir()
    with h5py.File(file) as opened:
        attributes = dict(opened.attrs)
        question = opened["s3/question"]
        assert isinstance(question, h5py.Dataset)
        assert question.asstr()[()] == "Is row 3 a café?"
    assert {name: value for name, value in attributes.items() if not name.startswith("midsight")} == {
        "model_name": "made-up",
        "model_type": "phi-4-multimodal",
        "device": "cpu",
        "dtype": "float32",
        "created_at": run.spec.created,
        "num_samples": 30,
    }
    assert attributes["midsight_vision_only"] == "encoder"
    assert attributes["midsight_last_layer"] == "after the final norm"


def test_pixels_in_place_of_the_encoders_mean(run, tmp_path):
    done = export_halp(run, tmp_path / "out", vision_only="pixels")
    assert same_bits(read_parts(tmp_path / "out")["s5"].vision_only, run.matrix(PIXELS)[5])
    with h5py.File(next((tmp_path / "out").iterdir())) as opened:
        assert opened.attrs["midsight_vision_only"] == "pixels"
    assert done.notes == [
        "Under vision_only_representation the files have the processor's pixels; --vision-only encoder puts the "
        "encoder's mean there.",
        f"The format has no place for {QUERY_TOKEN}.layer_1_residual, image_mean_representation.layer_0; export them "
        "with another --format.",
    ]


def test_a_run_with_pixels_alone_has_them_in_place_of_the_encoders_mean(tmp_path):
    spec = spec_of({PIXELS: 4})
    write_run(tmp_path / "run", [record(0, spec)], spec)
    done = export_halp(open_run(tmp_path / "run"), tmp_path / "out")
    assert same_bits(read_parts(tmp_path / "out")["s0"].vision_only, record(0, spec).vectors[PIXELS])
    with h5py.File(next((tmp_path / "out").iterdir())) as opened:
        assert opened.attrs["midsight_vision_only"] == "pixels"
    assert done.notes == [
        "Under vision_only_representation the files have the processor's pixels, because the run has no encoder's mean."
    ]


def test_parts_that_midsight_did_not_write_are_not_replaced(run, tmp_path):
    write_part(tmp_path / "out" / "llava_embeddings_part_001.h5", {"q1": make_sample(1, (0, 1))})
    export_halp(run, tmp_path / "own")
    shutil.copy(next((tmp_path / "own").iterdir()), tmp_path / "out" / "a.h5")
    before = (tmp_path / "out" / "llava_embeddings_part_001.h5").read_bytes()
    with pytest.raises(MidsightError, match=r"part_001\.h5 was not written by midsight, so it is not replaced; choose"):
        export_halp(run, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "llava_embeddings_part_001.h5").read_bytes() == before


def test_a_run_with_the_raw_last_layer_alone_says_that_it_is_before_the_norm(tmp_path):
    columns = {f"{QUERY_TOKEN}.layer_0": 8, f"{QUERY_TOKEN}.layer_1_residual": 8}
    spec = spec_of(columns)
    write_run(tmp_path / "run", [record(0, spec)], spec)
    export_halp(open_run(tmp_path / "run"), tmp_path / "out")
    stored = read_parts(tmp_path / "out")["s0"]
    assert stored.vision_only is None
    assert (
        stored.layers[QUERY_TOKEN][1].tobytes() == record(0, spec).vectors[f"{QUERY_TOKEN}.layer_1_residual"].tobytes()
    )
    with h5py.File(next((tmp_path / "out").iterdir())) as opened:
        assert opened.attrs["midsight_last_layer"] == "before the final norm"
        assert opened.attrs["midsight_vision_only"] == "none"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"vision_only": "siglip"}, "vision_only='siglip' is unknown; choose encoder or pixels"),
        ({"vision_only": "pixels"}, "has no column processor_pooled_pixels for vision_only='pixels'; extract it with"),
        ({"samples": ["nope"]}, "does not hold 1 of the samples, for example 'nope'"),
    ],
)
def test_what_a_run_does_not_have_is_refused(tmp_path, options, said):
    spec = spec_of({"vision_only_representation": 6})
    write_run(tmp_path / "run", [record(0, spec)], spec)
    with pytest.raises(MidsightError, match=said):
        export_halp(open_run(tmp_path / "run"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_ids_and_texts_that_hdf5_cannot_hold(tmp_path):
    spec = spec_of({"vision_only_representation": 6})
    ids = ["val/1.", "50%", "..", "12"]
    records = [record(i, spec, sample_id=one, question=f"a\0b {i}") for i, one in enumerate(ids)]
    write_run(tmp_path / "run", records, spec)
    done = export_halp(open_run(tmp_path / "run"), tmp_path / "out")
    assert done.notes == [
        "Ids such as '12' are read as numbers by pandas, and the probe scripts then find no sample; read their "
        "labels as text.",
        "Some ids cannot be names of groups, so all are percent-encoded; in labels for the probe scripts, write them "
        "as urllib.parse.quote(id, safe=' ') does.",
        "A zero byte, which ends a text in HDF5, is written as U+FFFD in 4 texts.",
    ]
    found = read_parts(tmp_path / "out")
    assert {*found} == {"val%2F1.", "50%25", "%2E.", "12"}
    assert found["12"].texts["question"] == "a\ufffdb 3"


def test_a_run_without_answers_and_rows(tmp_path):
    spec = spec_of(answers=False)
    write_run(tmp_path / "run", [record(0, spec, **dict.fromkeys(
        ("answer", "answer_token_ids", "answer_logprobs", "finish_reason", "first_token_entropy", "first_token_top_ids",
         "first_token_top_logprobs")))], spec)  # fmt: skip
    export_halp(open_run(tmp_path / "run"), tmp_path / "out")
    assert "answer" not in read_parts(tmp_path / "out")["s0"].texts
    write_run(tmp_path / "empty", [], spec)
    assert export_halp(open_run(tmp_path / "empty"), tmp_path / "nothing").samples == 0
    assert read_parts(tmp_path / "nothing") == {}


def test_the_command_says_what_it_wrote_and_refuses_what_it_would_not_heed(run, tmp_path):
    def call(*more):
        ended = CliRunner().invoke(app, ["export", str(run.path), "--out", str(tmp_path / "out"), *more])
        return ended.exit_code, ended.output

    code, said = call("--format", "halp", "--columns", "answer")
    assert (code, said.split(";")[1]) == (2, " leave out --columns.\n")
    code, said = call("--format", "csv", "--vision-only", "pixels")
    assert (code, said) == (2, "Error: --vision-only is for --format halp; leave it out.\n")
    code, said = call("--format", "halp", "--vision-only", "pixels")
    assert code == 0
    assert said.endswith(f"Wrote 30 samples in 1 HDF5 part to {tmp_path / 'out'}.\n")
    code, said = call("--format", "halp")
    assert (code, said) == (
        2, f"Error: {tmp_path / 'out'} exists already; choose another --out or give --overwrite.\n",
    )  # fmt: skip
    assert call("--format", "halp", "--overwrite")[0] == 0


def test_without_h5py_one_sentence(run, tmp_path, monkeypatch):
    def refuse(package):
        raise ImportError(package)

    monkeypatch.setattr(optional_packages.importlib, "import_module", refuse)
    with pytest.raises(
        MidsightError, match=r"^h5py is not installed; install it with: pip install 'midsight\[hdf5\]'$"
    ):
        export_halp(run, tmp_path / "out")


@pytest.mark.slow
def test_parts_have_a_thousand_samples(tmp_path):
    spec = spec_of({f"{QUERY_TOKEN}.layer_0": 2}, model=make_model_spec(layers=1))
    write_run(tmp_path / "run", (record(i, spec) for i in range(1001)), spec)
    assert export_halp(open_run(tmp_path / "run"), tmp_path / "out").parts == 2
    counts = []
    for file in sorted((tmp_path / "out").iterdir()):
        with h5py.File(file) as opened:
            counts.append((file.name[-6:-3], len(opened), opened.attrs["num_samples"]))
    assert counts == [("001", 1000, 1000), ("002", 1, 1)]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_run(tmp_path):
    """A run of 120 MB in row groups of 4 MB, in a process of its own: its peak is a few row groups."""
    columns = {f"{QUERY_TOKEN}.layer_{layer}": 16_000 for layer in (0, 1)}
    spec = spec_of(columns, request=make_request(residual=False))
    zeros = {name: np.zeros(width, np.float32) for name, width in columns.items()}
    write_run(tmp_path / "run", (record(i, spec, vectors=zeros) for i in range(960)), spec, commit_bytes=4 * 2**20)
    program = textwrap.dedent("""
        import sys
        from midsight.halp.export import export_halp
        from midsight.store import open_run
        import h5py, pandas, pyarrow.parquet  # pyarrow imports pandas when it converts
        peak = lambda: int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
        run, before = open_run(sys.argv[1]), peak()
        export_halp(run, sys.argv[2])
        print((peak() - before) / 1024)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), str(tmp_path / "out")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 90, f"{done.stdout} MB more"
    assert json.loads(Path(tmp_path / "run" / "run.json").read_text())["vectors"] == columns
