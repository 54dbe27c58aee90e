import csv
import errno
import json
import os
import subprocess
import sys
import textwrap
import tracemalloc
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from midsight.cli import app
from midsight.commands.export import split_columns
from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.store import RunWriter, export_target, exports, open_run
from midsight.store.commits import Commit, part_path, write_commit
from midsight.store.compact import compact
from midsight.store.csv_export import neutral
from midsight.store.exports import FORMATS, export_run, read_ids
from midsight.store.parts import digest_part, encode_part
from midsight.store.schema import StoreDtype, records_to_table
from support.made_up import QUERY_0, VISION, WIDTHS, files_of, make_record, make_spec, write_run

ARRAYS = [name for name in FORMATS if name != "csv"]
NUMBERS = ["year", "score", "hard", "prompt_tokens", "first_token_entropy"]
TESTS = str(Path(__file__).parents[1])


def write_mixed(path, store_dtype: StoreDtype = "float32"):
    """Forty rows in two shards, stored in an order that is not the dataset's."""
    spec = make_spec(store_dtype=store_dtype)
    order = np.random.default_rng(3).permutation(40)
    for number in (0, 1):
        with RunWriter(path, spec, shard=(number, 2), commit_bytes=2_000) as writer:
            for i in order[number::2]:
                writer.add(make_record(int(i), image_id=f"image-{i}"))
    return open_run(path)


@pytest.fixture(scope="module", params=["float32", "float16"])
def run(request, tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("export") / "run", request.param)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("export") / "run")


def load(out, format):
    """What an export of arrays holds: array by column, texts as such."""
    if format == "npy":
        return {file.stem: np.load(file, allow_pickle=False) for file in out.iterdir()}
    if format == "npz":
        with np.load(out, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    if format == "safetensors":
        found = load_file(out)
        text = {n: a.view(f"S{a.shape[1]}").ravel() for n, a in found.items() if a.dtype == np.uint8 and len(a)}
        return found | {name: np.array([t.decode() for t in array]) for name, array in text.items()}
    h5py = pytest.importorskip("h5py", reason="reads HDF5; in the development environment")
    with h5py.File(out) as file:
        return {n: np.array(d.asstr()[:], str) if h5py.check_string_dtype(d.dtype) else d[:] for n, d in file.items()}


def stored(run, column):
    """One vector column as it is stored, rows in dataset order."""
    dtype = np.dtype(run.spec.request.store_dtype)
    return np.array([make_record(i).vectors[column] for i in range(len(run))], np.float32).astype(dtype)


@pytest.mark.parametrize("format", ARRAYS)
def test_exported_arrays_are_the_stored_ones_bit_for_bit_in_dataset_order(run, tmp_path, format):
    out = tmp_path / "out"
    assert export_run(run, out, format) == out
    found = load(out, format)
    assert set(found) == {"sample_id", "input_index", "image_id", *WIDTHS}
    for column in WIDTHS:
        assert found[column].dtype == np.dtype(run.spec.request.store_dtype)
        assert found[column].shape == (40, WIDTHS[column])
        assert found[column].tobytes() == stored(run, column).tobytes()
    assert found["input_index"].tolist() == list(range(40))
    assert found["sample_id"].tolist() == [f"s{i}" for i in range(40)]
    assert found["image_id"].tolist() == [f"image-{i}" for i in range(40)]
    assert sorted(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("format", ARRAYS)
def test_columns_of_every_kind_and_chosen_samples(one_run, tmp_path, format):
    out = tmp_path / "out"
    samples = ["s31", "s2", "s3", "s17"]
    export_run(one_run, out, format, columns=[QUERY_0, *NUMBERS, "question"], samples=samples)
    found = load(out, format)
    assert list(found) == sorted(found) or format != "hdf5"
    assert set(found) == {"sample_id", "input_index", QUERY_0, *NUMBERS, "question"}
    rows = [2, 3, 17, 31]
    table = one_run.table().take(rows)
    assert found[QUERY_0].tobytes() == stored(one_run, QUERY_0)[rows].tobytes()
    for name in (*NUMBERS, "question", "sample_id", "input_index"):
        assert found[name].tolist() == table.column(name).to_pylist(), name
    assert found["hard"].dtype == np.bool_
    assert found["score"].dtype == np.float64


@pytest.mark.parametrize("format", FORMATS)
def test_a_run_without_rows_is_exported(tmp_path, format):
    write_run(tmp_path / "run", [])
    export_run(open_run(tmp_path / "run"), tmp_path / "out", format)
    if format == "csv":
        assert (tmp_path / "out").read_text().startswith("sample_id,input_index,image_id,image,question")
    else:
        assert load(tmp_path / "out", format)[QUERY_0].shape == (0, 8)


def test_a_compacted_run_is_exported_as_before(tmp_path):
    run = write_mixed(tmp_path / "run")
    before = export_run(run, tmp_path / "before.safetensors", "safetensors").read_bytes()
    compact(run.path)
    after = export_run(open_run(run.path), tmp_path / "after.safetensors", "safetensors").read_bytes()
    assert before == after


def ids_of(out, format):
    return [row[0] for row in read_csv(out)[1:]] if format == "csv" else load(out, format)["sample_id"].tolist()


def read_csv(file):
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def test_csv_holds_every_column_without_vectors(one_run, tmp_path):
    out = export_run(one_run, tmp_path / "out.csv", "csv")
    header, *rows = read_csv(out)
    table = one_run.table()
    assert header == ["sample_id", "input_index", *[n for n in table.schema.names if n not in exports.ALONGSIDE]]
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    assert len(rows) == 40
    for name in ("sample_id", "question", "answer", "meta", "finish_reason"):
        assert list(columns[name]) == table.column(name).to_pylist()
    for name in ("reference_answers", "answer_token_ids", "answer_logprobs"):
        assert [json.loads(cell) for cell in columns[name]] == table.column(name).to_pylist()
    assert [int(cell) for cell in columns["year"]] == list(range(40))
    assert [float(cell) for cell in columns["score"]] == [i / 7 for i in range(40)]
    assert columns["hard"][:2] == ("true", "false")


HOSTILE = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\r=x", "\nx", "＝1", "'quoted", "plain", " =1", "a,b", 'a"b', "a\rb"]


def test_no_cell_or_header_starts_a_formula_and_every_text_can_be_recovered(tmp_path):
    spec = make_spec(extras={"=cmd": "string", "n": "float64"})
    records = [
        make_record(i, sample_id=f"{text}{i}", question=text, extras={"=cmd": text, "n": -1.5})
        for i, text in enumerate(HOSTILE)
    ]
    write_run(tmp_path / "run", records, spec)
    run = open_run(tmp_path / "run")
    header, *rows = read_csv(export_run(run, tmp_path / "out.csv", "csv", columns=["question", "=cmd", "n", "answer"]))
    assert header == ["sample_id", "input_index", "question", "'=cmd", "n", "answer"]
    starts = tuple("=+-@\t\r\n＝＋－＠")
    for row, text in zip(rows, HOSTILE, strict=True):
        assert not any(cell.startswith(starts) for cell in (row[0], row[2], row[3], row[5]))
        assert row[2].removeprefix("'") == row[3].removeprefix("'") == text
        assert float(row[4]) == -1.5
    assert neutral("") == ""


def test_csv_writes_numbers_with_the_fewest_digits_that_read_back_the_same(tmp_path):
    values = [0.1, 1e-30, 3.4e38, 1 / 3, 0.0]
    write_run(tmp_path / "run", [make_record(i, first_token_entropy=value) for i, value in enumerate(values)])
    out = export_run(open_run(tmp_path / "run"), tmp_path / "out.csv", "csv", columns=["first_token_entropy"])
    cells = [row[2] for row in read_csv(out)[1:]]
    assert cells[0] == "0.1"
    assert [np.float32(cell) for cell in cells] == [np.float32(value) for value in values]


def test_missing_values_are_empty_cells_and_refused_by_arrays(tmp_path):
    write_run(tmp_path / "run", [make_record(0, answer=None, extras={"source": None}), make_record(1)])
    run = open_run(tmp_path / "run")
    out = export_run(run, tmp_path / "out.csv", "csv", columns=["answer", "year", "hard", "source"])
    assert read_csv(out)[1] == ["s0", "0", "", "", "", ""]
    for column in ("answer", "year"):
        for format in ARRAYS:
            with pytest.raises(MidsightError, match=f"column {column} has rows without a value, .* use format='csv'"):
                export_run(run, tmp_path / "out", format, columns=[column])
    assert export_run(run, tmp_path / "out", "npy", columns=["year"], samples=["s1"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "out.csv", "run"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "xls"}, "format 'xls' is unknown; choose from hdf5, safetensors, npz, npy, csv"),
        ({"columns": ["nothing"]}, r"has no column 'nothing'; it has sample_id, input_index, "),
        ({"columns": ["answer_token_ids"]}, "column answer_token_ids holds lists, which npz cannot; use format='csv'"),
        (
            {"columns": [QUERY_0], "format": "csv"},
            f"column {QUERY_0} holds vectors, which csv cannot; use format='npy'",
        ),
        ({"samples": ["s1", "s99", "t"]}, "does not hold 2 of the samples, for example 's99'; take them off the list"),
    ],
)
def test_what_cannot_be_exported_is_refused(one_run, tmp_path, arguments, sentence):
    with pytest.raises(MidsightError, match=sentence):
        export_run(one_run, tmp_path / "out", **{"format": "npz", **arguments})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "why"), [("x" * 5000, "is longer than 4096 bytes"), ("x\0", "ends with a zero byte")])
def test_texts_that_an_array_would_change_are_refused(tmp_path, text, why):
    write_run(tmp_path / "run", [make_record(0, question=text)])
    run = open_run(tmp_path / "run")
    for format in ARRAYS:
        with pytest.raises(
            MidsightError, match=f"A text of the column question {why}, which {format} cannot hold; use format='csv'"
        ):
            export_run(run, tmp_path / "out", format, columns=["question"])
    assert read_csv(export_run(run, tmp_path / "out", "csv"))[1][4] == text


@pytest.mark.parametrize("format", ARRAYS)
def test_texts_in_other_scripts_come_back(tmp_path, format):
    texts = ["Zürich", "日本語", "😀", "", "a/b\nc"]
    write_run(tmp_path / "run", [make_record(i, sample_id=f"{text}{i}") for i, text in enumerate(texts)])
    out = export_run(open_run(tmp_path / "run"), tmp_path / "out", format, columns=[])
    assert load(out, format)["sample_id"].tolist() == [f"{text}{i}" for i, text in enumerate(texts)]


def test_column_names_that_are_not_file_names_are_percent_encoded(tmp_path):
    spec = make_spec(extras={"../up": "int64", "a/b": "int64"})
    write_run(tmp_path / "run", [make_record(0, extras={"../up": 1, "a/b": 2})], spec)
    run = open_run(tmp_path / "run")
    for format in ("npy", "hdf5"):
        found = load(export_run(run, tmp_path / format, format, columns=["../up", "a/b"]), format)
        assert set(found) == {"sample_id", "input_index", "%2E.%2Fup", "a%2Fb"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["hdf5", "npy", "run"]


ODD_NAMES = [
    "x",
    "x.npy",
    ".",
    "..",
    "a\ufffdb",
    "a b",
    "__metadata__",
    ".hidden",
    "100%",
    "Größe",
    "a,b",
    'a"b',
    "a/b",
    "'q",
]
REFUSED = {
    "npz": {"x.npy": "cannot be told from 'x'"},
    "safetensors": {"__metadata__": "has a reserved name"},
}


@pytest.fixture(scope="module")
def odd_run(tmp_path_factory):
    """Two rows; the value of each extra says which it is."""
    path = tmp_path_factory.mktemp("odd") / "run"
    names = [*ODD_NAMES, "é" * 50]
    extras = {name: number for number, name in enumerate(names)}
    write_run(path, [make_record(0, extras=extras)], make_spec(extras=dict.fromkeys(names, "int64")))
    return open_run(path)


@pytest.mark.parametrize("format", FORMATS)
def test_columns_with_odd_names_read_back_or_are_refused(odd_run, tmp_path, format):
    refused = REFUSED.get(format, {})
    for name, why in refused.items():
        with pytest.raises(MidsightError) as caught:
            export_run(odd_run, tmp_path / "out", format, columns=[name, "x"])
        assert f"The column {name!r} {why}, so {format} cannot hold it; use another format" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    names = [name for name in ODD_NAMES if name not in refused]
    out = export_run(odd_run, tmp_path / "out", format, columns=names)
    if format == "csv":
        header, row = read_csv(out)
        found = {name.removeprefix("'"): [int(cell)] for name, cell in zip(header[2:], row[2:], strict=True)}
    else:
        found = {
            name if format in ("npz", "safetensors") else unquote(name): v for name, v in load(out, format).items()
        }
    for name in names:
        assert found[name] == [ODD_NAMES.index(name)], name


def test_a_column_whose_name_is_too_long_for_a_file_is_refused(odd_run, tmp_path):
    name = "é" * 50
    with pytest.raises(MidsightError, match="has a name that is too long for a file, so npy cannot hold it; use"):
        export_run(odd_run, tmp_path / "out", "npy", columns=[name])
    assert load(export_run(odd_run, tmp_path / "out", "npz", columns=[name]), "npz")[name].shape == (1,)


@pytest.mark.parametrize(
    ("format", "name", "why"),
    [
        ("npz", "a\0b", "has a zero byte in its name"),
        ("hdf5", "", "has no name"),
        ("npy", "", "has no name"),
    ],
)
def test_names_of_earlier_runs_are_refused_where_they_would_not_read_back(tmp_path, format, name, why):
    run = open_run(Path(__file__).parent / "archive/format-1-same-names")
    with pytest.raises(MidsightError, match=f"The column .* {why}, so {format} cannot hold it"):
        export_run(run, tmp_path / "out", format, columns=[name])


def test_columns_that_are_one_text_are_refused(odd_run, tmp_path):
    with pytest.raises(MidsightError, match="columns are the text 'answer'; give a list of names, like"):
        export_run(odd_run, tmp_path / "out", "csv", columns="answer")


def test_csv_tells_an_empty_text_from_no_value(tmp_path):
    records = [make_record(0, answer=""), make_record(1, answer=None), make_record(2, answer='a"b\n')]
    write_run(tmp_path / "run", records)
    out = export_run(open_run(tmp_path / "run"), tmp_path / "out.csv", "csv", columns=["answer", "year"])
    assert out.read_bytes() == b'sample_id,input_index,answer,year\r\ns0,0,"",0\r\ns1,1,,1\r\ns2,2,"a""b\n",2\r\n'


def test_a_long_text_among_many_short_ones_takes_little_memory(tmp_path, monkeypatch):
    spec = make_spec(vectors={VISION: 4})
    write_run(
        tmp_path / "run", [make_record(i, spec, question="x" * (4000 if i == 7 else 1)) for i in range(300)], spec
    )
    run = open_run(tmp_path / "run")
    monkeypatch.setattr(exports, "ROWS_BYTES", 2**18)
    for format in ARRAYS:
        tracemalloc.start()
        try:
            export_run(run, tmp_path / format, format, columns=["question"])
            assert tracemalloc.get_traced_memory()[1] < 3_000_000  # 300 times 4,000 characters are 4.8 MB
        finally:
            tracemalloc.stop()
    assert load(tmp_path / "npz", "npz")["question"][7] == "x" * 4000


@pytest.mark.parametrize("format", FORMATS)
def test_an_existing_file_is_kept_without_overwrite(one_run, tmp_path, format):
    out = tmp_path / "out"
    export_run(one_run, out, format, samples=["s1"])
    old = out.read_bytes() if out.is_file() else sorted(out.iterdir())
    with pytest.raises(MidsightError, match=f"{out} exists already; choose another out or give overwrite=True"):
        export_run(one_run, out, format)
    assert old == (out.read_bytes() if out.is_file() else sorted(out.iterdir()))
    export_run(one_run, out, format, samples=["s2"], overwrite=True)
    assert ids_of(out, format) == ["s2"]
    assert list(tmp_path.iterdir()) == [out]


def test_overwriting_spares_files_that_are_not_exports(one_run, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").touch()
    (tmp_path / "file").write_text("mine")
    for out, format in (("folder", "npy"), ("folder", "csv"), ("file", "npy")):
        with pytest.raises(MidsightError, match="choose another out"):
            export_run(one_run, tmp_path / out, format, overwrite=True)
    for inside in (one_run.path, one_run.path / "run.json", one_run.path / "parts" / "x.csv"):
        with pytest.raises(MidsightError, match=r"is in the run folder .*; choose an out outside of it"):
            export_run(one_run, inside, "csv", overwrite=True)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "folder", "thesis.tex"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_failing_disk_leaves_the_old_export(one_run, tmp_path, monkeypatch, format):
    out = tmp_path / "out"
    export_run(one_run, out, format, samples=["s1"])

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((os, "fsync"), (export_target, "_put")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, refuse)
            with pytest.raises(RunError, match=f"{out} could not be written: No space left on device"):
                export_run(one_run, out, format, overwrite=True)
        assert ids_of(out, format) == ["s1"]
        assert list(tmp_path.iterdir()) == [out]


def test_damage_stops_an_export(tmp_path):
    run = write_mixed(tmp_path / "run")
    part = files_of(tmp_path / "run", ".parquet")[1]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    for format in ARRAYS:
        with pytest.raises(DamagedRunError, match=part.name):
            export_run(run, tmp_path / "out", format, columns=[*NUMBERS, *WIDTHS, "question", "image", "meta"])
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_ids_are_read_from_lines_or_a_json_list(tmp_path):
    (tmp_path / "ids.txt").write_bytes("s1\r\ns 2\n\nZürich".encode())
    (tmp_path / "ids.json").write_text('["a\\nb", ""]')
    assert read_ids(tmp_path / "ids.txt") == ["s1", "s 2", "Zürich"]
    assert read_ids(tmp_path / "ids.json") == ["a\nb", ""]
    (tmp_path / "ids.txt").write_text("s3\n", "utf-8-sig")
    assert read_ids(tmp_path / "ids.txt") == ["s3"]
    (tmp_path / "bad.json").write_text("[1]")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe")
    for name, why in (
        ("bad.json", "does not hold sample ids"),
        ("bad.txt", "does not hold sample ids"),
        ("none", "cannot be read"),
    ):
        with pytest.raises(MidsightError, match=why):
            read_ids(tmp_path / name)


def test_the_command_exports_what_it_is_told(one_run, tmp_path):
    (tmp_path / "ids").write_text("s3\ns1\n")
    arguments = ["export", one_run.path, "--format", "npz", "--out", tmp_path / "out.npz", "--columns"]
    arguments += [f"{QUERY_0},year", "--samples", tmp_path / "ids"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.output) == (0, f"Wrote {tmp_path / 'out.npz'}.\n")
    assert load(tmp_path / "out.npz", "npz")["year"].tolist() == [1, 3]
    again = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert again.exit_code == 2
    assert "exists already; choose another" in again.output


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["b,a"], ["b,a"]),
        (["b,a", "year"], ["b,a", "year"]),
        (["b,a,year"], ["b", "a", "year"]),
        (["year , b"], ["year", "b"]),
    ],
)
def test_a_column_whose_name_has_a_comma_is_given_on_its_own(given, names):
    assert split_columns(given, ["b,a", "year"]) == names


@pytest.mark.parametrize("given", [[""], [" , "]])
def test_an_option_for_columns_that_names_none_is_refused(given):
    with pytest.raises(MidsightError, match="columns names no column; leave it out, or name one"):
        split_columns(given, ["year"])


def test_the_option_for_columns_may_be_repeated(odd_run, tmp_path):
    arguments = ["export", odd_run.path, "--format", "npz", "--out", tmp_path / "out", "--columns", "a,b"]
    done = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--columns", "x, 100%"]])
    assert done.exit_code == 0, done.output
    assert set(load(tmp_path / "out", "npz")) == {"sample_id", "input_index", "a,b", "x", "100%"}


PEAK = """
    import sys
    from midsight.store import open_run
    from midsight.store.exports import export_run
    export_run(open_run(sys.argv[1]), sys.argv[2], sys.argv[3])
    # Only of this program: getrusage would count the memory of the process that started it.
    print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
"""
LARGE = 45_000


@pytest.fixture(scope="module")
def large_run(tmp_path_factory):
    """1.1 GB of vectors; rows share images, so it is small on disk."""
    path = tmp_path_factory.mktemp("large") / "run"
    spec = make_spec(vectors={VISION: 3072, QUERY_0: 3072}, extras={"text": "string"})
    write_run(path, [], spec)
    row = records_to_table([make_record(0, spec, extras={"text": "long " * 200})], spec.columns)
    random = np.random.default_rng(0)
    for counter in range(LARGE // 4500):
        table = row.take([0] * 4500)
        indices = np.arange(LARGE)[counter :: LARGE // 4500]
        values = {"sample_id": pa.array([f"s{i}" for i in indices]), "input_index": pa.array(indices)}
        for name in spec.vectors:
            images = random.standard_normal((90, 3072)).astype(np.float32)
            values[name] = pa.FixedSizeListArray.from_arrays(pa.array(images.repeat(50, axis=0).ravel()), 3072)
        for name, array in values.items():
            index = table.schema.get_field_index(name)
            table = table.set_column(index, table.schema.field(index), array.cast(table.schema.field(index).type))
        data = encode_part(table)
        part_path(path, (0, 1), counter).write_bytes(data)
        write_commit(path, Commit((0, 1), counter, digest_part(data), ()), spec.run_id)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_memory_stays_under_1_gb_for_a_run_that_is_larger(large_run, tmp_path, format):
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc to tell the peak of a process")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PEAK), str(large_run), str(tmp_path / "out"), format],
        check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    peak = int(done.stdout) * 1024
    print(f"{format}: {peak / 1e6:.0f} MB at the peak")
    assert peak < 1e9
    size = sum(file.stat().st_size for file in [tmp_path / "out", *tmp_path.rglob("out/*")] if file.is_file())
    assert size > (LARGE * 1000 if format == "csv" else 1.1e9)
