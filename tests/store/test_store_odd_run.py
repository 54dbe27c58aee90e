"""One run that is hard to read, through every tool of the table in docs/format.md, bit for bit."""

import csv
import itertools
import json
import math
import re
import struct
import tomllib
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from midsight.store import open_run
from midsight.store.exports import ALONGSIDE, export_run
from midsight.store.schema import extra_columns
from support.odd_run import EXTRAS, ROWS, VECTORS, odd_record, odd_spec, write_odd_run

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
REASON = "reads runs too; in the development environment"
STORED_AS = extra_columns(EXTRAS)
TYPES = {column: EXTRAS[name] for name, column in STORED_AS.items()}


@pytest.fixture(scope="module", params=[pytest.param("float32", marks=pytest.mark.slow), "float16"])
def run(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "run"
    write_odd_run(path, request.param)
    run = open_run(path)
    assert len(run.part_paths()) > 3
    assert any(commit.replaces for commit in run.commits)
    return run


def expected(run):
    """The rows in dataset order, from the records that were written; JSON extras are text."""
    rows = []
    for index in range(ROWS):
        record = odd_record(index, odd_spec("float32"))
        row = {name: getattr(record, name) for name in run.columns if hasattr(record, name) and name not in VECTORS}
        for name, type_ in EXTRAS.items():
            value = record.extras[name]
            is_text = type_ == "json" and value is not None
            row[STORED_AS[name]] = json.dumps(value, ensure_ascii=False) if is_text else value
        for name, vector in record.vectors.items():
            row[name] = vector.astype(run.spec.request.store_dtype).astype(np.float64).tolist()
        rows.append({name: row[name] for name in run.columns})
    return rows


def bits(value):
    """Floats as their bits, arrays and tuples as lists; every NaN is one, and so is every missing value of pandas."""
    if isinstance(value, list | tuple | np.ndarray):
        return [bits(item) for item in value]
    if type(value).__name__ in ("NAType", "NoneType"):
        return None
    if isinstance(value, float | np.floating):
        return "nan" if math.isnan(value) else struct.pack("<d", float(value)).hex()
    return value.item() if isinstance(value, np.generic) else value


def require_equal(found, run, columns=None, missing=()):
    """`found` are rows as dictionaries; for the types `missing` the tool has one sign for null and NaN."""
    found = sorted(found, key=lambda row: row["input_index"])
    wanted = expected(run)
    assert len(found) == ROWS
    assert list(found[0]) == list(columns or run.columns)
    for name in found[0]:
        one_sign = TYPES.get(name) in missing
        for got, want in zip(found, wanted, strict=True):
            a, b = bits(got[name]), bits(want[name])
            if one_sign:
                a, b = (None if value == "nan" else value for value in (a, b))
            assert a == b, (name, got[name], want[name])


def test_midsight(run):
    columns = [*run.table().schema.names, *VECTORS]
    matrices = {name: run.matrix(name) for name in VECTORS}
    rows = [{**row, **{n: m[i] for n, m in matrices.items()}} for i, row in enumerate(run.table().to_pylist())]
    require_equal(rows, run, columns)


def test_pyarrow(run):
    require_equal(pa.concat_tables([pq.read_table(part) for part in run.part_paths()]).to_pylist(), run)


def test_pandas(run):
    pandas = pytest.importorskip("pandas", reason=REASON)
    parts = [pandas.read_parquet(part, dtype_backend="numpy_nullable") for part in run.part_paths()]
    require_equal(pandas.concat(parts).to_dict("records"), run, missing=("float64",))
    frame = run.to_pandas(run.columns)
    texts = [name for name, dtype in frame.dtypes.items() if dtype != np.float64]
    frame[texts] = frame[texts].astype(object).where(frame[texts].notna(), None)
    require_equal(frame.to_dict("records"), run, missing=("float64",))


def test_polars(run):
    polars = pytest.importorskip("polars", reason=REASON)
    require_equal(polars.concat([polars.read_parquet(part) for part in run.part_paths()]).to_dicts(), run)
    require_equal(run.to_polars(run.columns).to_dicts(), run)


def test_duckdb(run):
    duckdb = pytest.importorskip("duckdb", reason=REASON)
    found = duckdb.read_parquet(run.part_paths())
    require_equal([dict(zip(found.columns, row, strict=True)) for row in found.fetchall()], run)


@pytest.mark.slow
def test_datasets(run, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason=REASON)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    require_equal(datasets.load_dataset("parquet", data_files=run.part_paths(), split="train").to_list(), run)
    require_equal(run.to_dataset(run.columns).to_list(), run)


# fastparquet itself leaves its files open.
@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_fastparquet_reads_columns_without_vectors(run):
    fastparquet = pytest.importorskip("fastparquet", reason=REASON)
    pandas = pytest.importorskip("pandas", reason=REASON)
    columns = ["sample_id", "input_index", "answer", "prompt_tokens"]
    parts = [fastparquet.ParquetFile(part) for part in run.part_paths()]
    require_equal(pandas.concat([part.to_pandas(columns=columns) for part in parts]).to_dict("records"), run, columns)
    with pytest.raises((NotImplementedError, KeyError)):
        parts[0].to_pandas(columns=[*VECTORS])


@pytest.mark.parametrize("format", ["hdf5", "safetensors", "npz", "npy"])
def test_hdf5_safetensors_npz_and_npy(run, tmp_path, format):
    out = export_run(run, tmp_path / "out", format, columns=[*VECTORS, "answer", "input_index"])
    if format == "hdf5":
        h5py = pytest.importorskip("h5py", reason=REASON)
        with h5py.File(out) as file:
            found = {unquote(name): data[:] for name, data in file.items()}
            assert found["answer"][0] == b"answer 0"  # so the document says to use .asstr()
            found["answer"] = file["answer"].asstr()[:]
    elif format == "safetensors":
        found = load_file(out)
        found["answer"] = np.array([row.tobytes().rstrip(b"\0").decode() for row in found["answer"]])
    else:
        found = np.load(out) if format == "npz" else {unquote(f.stem): np.load(f) for f in out.iterdir()}
    for row, want in enumerate(expected(run)):
        for name in (*VECTORS, "answer", "input_index"):
            assert bits(found[name][row]) == bits(want[name])


def test_csv(run, tmp_path):
    columns = [name for name in run.columns if name not in VECTORS]
    out = export_run(run, tmp_path / "out.csv", "csv")
    with out.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == [*ALONGSIDE, *[name for name in columns if name not in ALONGSIDE]]
    for cells, want in zip(rows, expected(run), strict=True):
        for name, cell in zip(header, cells, strict=True):
            value = want[name]
            if value is None:
                assert cell == "", name
            elif isinstance(value, str):
                assert cell == value or cell == f"'{value}", name
            elif TYPES.get(name) == "bool":
                assert cell == str(value).lower()
            elif isinstance(value, float):
                assert bits(float(np.float32(cell) if name == "first_token_entropy" else cell)) == bits(value), name
            else:
                assert json.loads(cell) == (list(value) if isinstance(value, tuple) else value), name


def test_csv_in_pandas_polars_and_duckdb(run, tmp_path):
    out = export_run(run, tmp_path / "out.csv", "csv", columns=["answer"])
    ids = [f"{index:03d}" for index in range(ROWS)]
    pandas = pytest.importorskip("pandas", reason=REASON)
    assert pandas.read_csv(out)["sample_id"].tolist() == list(range(ROWS))  # so the document says to use dtype=str
    assert pandas.read_csv(out, dtype=str, keep_default_na=False)["sample_id"].tolist() == ids
    polars = pytest.importorskip("polars", reason=REASON)
    assert polars.read_csv(out, infer_schema=False)["sample_id"].to_list() == ids
    duckdb = pytest.importorskip("duckdb", reason=REASON)
    assert [row[0] for row in duckdb.read_csv(str(out), all_varchar=True).fetchall()] == ids


def test_the_oldest_versions_of_the_table_are_those_that_midsight_asks_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    oldest = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(asked), re.MULTILINE))
    table = DOCUMENT.partition("### What reads what\n")[2].partition("\n### ")[0]
    for name in ("pyarrow", "pandas", "polars", "datasets", "h5py", "numpy", "safetensors"):
        (found,) = re.findall(rf"\b{name}[ |]+([\d.]+)", table)
        assert f"{found}.".startswith(f"{oldest[name]}."), name


def test_every_tool_of_the_table_is_tested_here():
    table = DOCUMENT.partition("### What reads what\n")[2].partition("\n### ")[0]
    tools = set(re.findall(r"^\| ([\w ]+?) \|", table, re.MULTILINE)) - {"tool"}
    assert len(tools) > 8
    names = " ".join(name for name in globals() if name.startswith("test_"))
    assert not [tool for tool in tools if tool.lower().split()[0] not in names]
