"""The same run read by other tools, as docs/format.md shows it."""

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from midsight.errors import MidsightError
from midsight.store import RunWriter, open_run, tables
from midsight.store.compact import compact
from midsight.store.exports import export_run
from midsight.store.schema import extra_columns
from support.made_up import make_record, make_spec, write_run

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
LAYER_16 = "query_token_representation.layer_16"
COUNT = 150
REASON = "reads runs too; in the development environment"


def vector(index):
    return make_record(index, SPEC).vectors[LAYER_16]


SPEC = make_spec(vectors={"vision_only_representation": 4, LAYER_16: 8})
EXPECTED = np.stack([vector(index) for index in range(COUNT)])


@pytest.fixture(scope="module", params=["compacted", "compacted and killed"])
def run_folder(request, tmp_path_factory):
    """A run of several parts, rows out of order; some parts were merged, and in one case not yet deleted."""
    path = tmp_path_factory.mktemp("tools") / "run"
    order = np.random.default_rng(0).permutation(COUNT)
    for number in (0, 1):
        with RunWriter(path, SPEC, shard=(number, 2), commit_bytes=3_000) as writer:
            for i in order[number::2]:
                writer.add(make_record(int(i), SPEC, image_id=str(i)))
    old = {file: file.read_bytes() for file in (path / "parts").iterdir()}
    compact(path, target_bytes=12_000)
    commits = open_run(path).commits
    assert len(commits) > 3
    assert any(commit.replaces for commit in commits)
    if "killed" in request.param:
        for file, data in old.items():
            file.write_bytes(data)
    return path


def snippets(heading):
    """The Python of one section of the document."""
    section = DOCUMENT.partition(f"\n{heading}\n")[2]
    assert section, heading
    return re.findall(r"```python\n(.*?)```", re.split(r"\n###? ", section)[0], re.DOTALL)


def run_section(heading, path):
    """What the names of the section's code stand for after it ran on the run in `path`."""
    names = {"__name__": "section", "np": np}
    for code in [*snippets("## Reading it with other tools"), *snippets(heading)]:
        exec(compile(code.replace("RUN", str(path)), heading, "exec"), names)  # noqa: S102 - our own document
    return names


def test_pandas_reads_the_parts(run_folder):
    pytest.importorskip("pandas", reason=REASON)
    names = run_section("### pandas", run_folder)
    assert names["X"].tobytes() == EXPECTED.tobytes()
    assert names["table"]["answer"].tolist() == [f"answer {i}" for i in range(COUNT)]


def test_polars_reads_the_parts(run_folder):
    pytest.importorskip("polars", reason=REASON)
    names = run_section("### polars", run_folder)
    assert names["X"].tobytes() == EXPECTED.tobytes()
    assert names["table"]["answer"].to_list() == [f"answer {i}" for i in range(COUNT)]


def test_duckdb_reads_the_parts(run_folder):
    pytest.importorskip("duckdb", reason=REASON)
    names = run_section("### DuckDB", run_folder)
    assert np.ascontiguousarray(names["X"]).tobytes() == EXPECTED.tobytes()
    assert names["found"]["sample_id"].tolist() == [f"s{i}" for i in range(COUNT)]


def test_duckdb_tells_input_columns_from_ours(tmp_path):
    duckdb = pytest.importorskip("duckdb", reason=REASON)
    extras = ["Answer", "QUESTION", "Year", "year", "Größe", "Gro\u0308ße"]
    spec = make_spec(extras=dict.fromkeys(extras, "string"))
    write_run(tmp_path, [make_record(0, extras={name: f"the user's {name}" for name in extras})], spec)
    query = duckdb.read_parquet(open_run(tmp_path).part_paths())
    row = dict(zip(query.columns, query.fetchall()[0], strict=True))
    assert query.columns == list(open_run(tmp_path).columns)
    assert (row["answer"], row["question"]) == ("answer 0", "What is in row 0?")
    assert [row[column] for column in extra_columns(extras).values()] == [f"the user's {name}" for name in extras]
    assert query.project("ANSWER").fetchall() == [("answer 0",)]


# datasets itself sorts with an option that pyarrow now warns of.
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
def test_datasets_reads_the_parts(run_folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason=REASON)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    names = run_section("### Hugging Face datasets", run_folder)
    assert np.asarray(names["X"], np.float32).tobytes() == EXPECTED.tobytes()
    assert names["rows"]["sample_id"][:] == [f"s{i}" for i in range(COUNT)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_reads_the_parts(run_folder, workers):
    torch = pytest.importorskip("torch", reason=REASON)
    names = run_section("### PyTorch's DataLoader", run_folder)
    found = {}
    for indices, matrix in torch.utils.data.DataLoader(names["Vectors"](), 64, num_workers=workers):
        found |= {int(i): row.numpy().copy() for i, row in zip(indices, matrix, strict=True)}
    assert len(found) == COUNT
    assert np.stack([found[i] for i in range(COUNT)]).tobytes() == EXPECTED.tobytes()


def test_midsight_reads_the_run(run_folder):
    pytest.importorskip("pandas", reason=REASON)
    names = run_section("### midsight", run_folder)
    assert names["X"].tobytes() == EXPECTED.tobytes()
    assert names["table"].num_rows == COUNT
    assert names["frame"]["year"].tolist() == list(range(COUNT))


def test_texts_of_safetensors_are_recovered(run_folder, tmp_path, monkeypatch):
    export_run(open_run(run_folder), tmp_path / "OUT.safetensors", "safetensors")
    monkeypatch.chdir(tmp_path)
    names = {}
    (code,) = snippets("## Exports")
    exec(code, names)  # noqa: S102 - our own document
    assert names["ids"] == [f"s{i}" for i in range(COUNT)]


def test_to_pandas(run_folder):
    pandas = pytest.importorskip("pandas", reason=REASON)
    run = open_run(run_folder)
    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == run.table().schema.names
    assert frame["question"].tolist() == run.table().column("question").to_pylist()
    chosen = run.to_pandas([LAYER_16, "sample_id"])
    assert list(chosen.columns) == [LAYER_16, "sample_id"]
    assert np.stack(chosen[LAYER_16].tolist()).tobytes() == EXPECTED.tobytes()


def test_whole_numbers_and_truth_values_that_are_missing_change_nothing(tmp_path):
    pandas = pytest.importorskip("pandas", reason=REASON)
    numbers = [2**53 + 1 + 2 * i for i in range(6)]
    records = [make_record(i, extras={"year": number, "hard": i % 2 == 0}) for i, number in enumerate(numbers)]
    write_run(tmp_path, [*records, make_record(6, extras={"year": None, "hard": None})])
    frame = open_run(tmp_path).to_pandas(["year", "input_index", "hard", "prompt_tokens"])
    assert frame["year"].tolist() == [*numbers, pandas.NA]
    assert frame["hard"].tolist() == [True, False] * 3 + [pandas.NA]
    assert [str(dtype) for dtype in frame.dtypes] == ["Int64", "int64", "boolean", "int64"]
    assert run_section("### pandas, whole numbers", tmp_path)["frame"]["year"].tolist() == [*numbers, pandas.NA]
    plain = pandas.read_parquet(open_run(tmp_path).part_paths()[0])  # the document warns of this
    assert plain["year"].tolist()[0] == 2**53


@pytest.mark.parametrize("limit", [100, 10**9])
def test_columns_of_long_texts_get_large_offsets(run_folder, monkeypatch, limit):
    monkeypatch.setattr(tables, "LONGEST_COLUMN", limit)
    run = open_run(run_folder)
    large = limit == 100
    table = run.table()
    assert pa.types.is_large_string(table.schema.field("question").type) == large
    assert pa.types.is_large_list(table.schema.field("reference_answers").type) == large
    monkeypatch.undo()
    assert table.to_pylist() == run.table().to_pylist()
    monkeypatch.setattr(tables, "LONGEST_COLUMN", limit)
    names = ["question", "reference_answers", LAYER_16]
    for package, read in (("pandas", run.to_pandas), ("polars", run.to_polars), ("datasets", run.to_dataset)):
        pytest.importorskip(package, reason=REASON)
        found = read(names)
        assert [*found["question"]] == [f"What is in row {i}?" for i in range(COUNT)]
        assert [[*answers] for answers in found["reference_answers"]] == [["yes", "no"][: i % 3] for i in range(COUNT)]
        assert np.stack([*found[LAYER_16]]).astype(np.float32).tobytes() == EXPECTED.tobytes()


def test_cells_of_vectors_are_views_of_one_array(run_folder):
    pytest.importorskip("pandas", reason=REASON)
    cells = open_run(run_folder).to_pandas([LAYER_16])[LAYER_16]
    assert len({id(cell.base) for cell in cells}) == 1


def test_a_dataset_is_not_hashed_and_the_same_columns_have_the_same_fingerprint(run_folder, monkeypatch):
    datasets = pytest.importorskip("datasets", reason=REASON)
    monkeypatch.setattr(datasets.arrow_dataset, "generate_fingerprint", lambda _: pytest.fail("it copies the table"))
    run = open_run(run_folder)
    prints = [run.to_dataset(columns)._fingerprint for columns in (["year"], ["year"], ["score"], None)]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert open_run(run_folder).to_dataset(["year"]).map(lambda row: row)._fingerprint != prints[0]


def test_to_polars(run_folder):
    polars = pytest.importorskip("polars", reason=REASON)
    run = open_run(run_folder)
    assert run.to_polars().equals(polars.from_arrow(run.table()))
    chosen = run.to_polars([LAYER_16])
    assert chosen.schema == {LAYER_16: polars.Array(polars.Float32, 8)}
    assert chosen[LAYER_16].to_numpy().tobytes() == EXPECTED.tobytes()


def test_to_dataset(run_folder):
    datasets = pytest.importorskip("datasets", reason=REASON)
    run = open_run(run_folder)
    dataset = run.to_dataset()
    assert isinstance(dataset, datasets.Dataset)
    assert dataset.column_names == run.table().schema.names
    assert dataset[7]["sample_id"] == "s7"
    chosen = run.to_dataset([LAYER_16, "year"]).with_format("numpy")
    assert np.asarray(chosen[LAYER_16][:], np.float32).tobytes() == EXPECTED.tobytes()
    assert [len(batch["year"]) for batch in chosen.iter(batch_size=100)] == [100, 50]


@pytest.mark.parametrize("name", ["to_pandas", "to_polars", "to_dataset"])
def test_a_package_that_is_not_there_is_named_with_its_command(run_folder, monkeypatch, name):
    package = "datasets" if name == "to_dataset" else name.removeprefix("to_")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MidsightError, match=rf"{package} is not installed; .* pip install 'midsight\[{package}\]'"):
        getattr(open_run(run_folder), name)()


def test_h5py_that_is_not_there_is_named_with_its_command(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MidsightError, match=r"h5py is not installed; .* pip install 'midsight\[hdf5\]'"):
        export_run(open_run(run_folder), tmp_path / "out", "hdf5")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["to_pandas", "to_polars", "to_dataset"])
def test_a_column_that_the_run_does_not_have_is_refused(run_folder, name):
    pytest.importorskip("datasets" if name == "to_dataset" else name.removeprefix("to_"), reason=REASON)
    with pytest.raises(MidsightError, match="has no column 'anser'; it has sample_id, input_index, "):
        getattr(open_run(run_folder), name)(["anser"])


@pytest.mark.parametrize("name", ["to_pandas", "to_polars", "to_dataset"])
def test_columns_are_a_list_without_repeats(run_folder, name):
    pytest.importorskip("datasets" if name == "to_dataset" else name.removeprefix("to_"), reason=REASON)
    made = getattr(open_run(run_folder), name)
    columns = made(["answer", "sample_id", "answer"])
    assert list(columns.column_names if name == "to_dataset" else columns.columns) == ["answer", "sample_id"]
    with pytest.raises(MidsightError, match=re.escape("the text 'answer'; give a list of names, like ['answer']")):
        made("answer")
