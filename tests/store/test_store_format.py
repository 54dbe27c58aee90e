"""docs/format.md is enough to read a run: this reader follows the document and uses none of midsight's code."""

import dataclasses
import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from midsight.records import ONLY_WITH, Record
from midsight.store import RunWriter
from midsight.store.compact import compact
from midsight.store.schema import run_schema
from midsight.store.spec import RiskSpec
from support.made_up import QUERY_0, make_failure, make_record, make_risk_spec, make_spec

PARTS_OF_THE_SPEC = ("request", "model", "prompt", "dataset", "environment")
DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


@pytest.fixture
def run_folder(tmp_path):
    with RunWriter(tmp_path, make_spec(), commit_seconds=0) as writer:
        writer.fail(make_failure(0))
        for i in (7, 3, 5, 1):
            writer.add(make_record(i))
    return tmp_path


def sealed(file):
    content = json.loads(file.read_text("ascii"))
    body = {key: value for key, value in content.items() if key != "seal"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    assert content["seal"] == hashlib.sha256(text.encode()).hexdigest()
    return content


@pytest.mark.parametrize("compacted", [False, True])
def test_a_reader_written_from_the_document_reads_a_run(run_folder, compacted):
    if compacted:  # and killed before anything was deleted
        old = {file: file.read_bytes() for file in (run_folder / "parts").iterdir()}
        compact(run_folder)
        for file, data in old.items():
            file.write_bytes(data)
    run = sealed(run_folder / "run.json")
    assert run["format_version"] == 1
    rows = {}
    names, replaced = [], set()
    for name in sorted((run_folder / "parts").glob("*.json"), reverse=True):
        if name.stem not in replaced:
            names.append(name)
            shard, _, _ = name.stem.rpartition("-")
            replaced |= {f"{shard}-{counter:06d}" for counter in sealed(name)["replaces"]}
    records = [sealed(name) for name in names]
    assert all(record["run_id"] == run["run_id"] for record in records)
    assert [record["name"] for record in records] == [name.stem for name in names]
    for record, name in zip(records, names, strict=True):
        if record["part"] is None:
            continue
        part, data = record["part"], name.with_suffix(".parquet").read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (part["bytes"], part["sha256"])
        footer = data[-part["footer_bytes"] :]
        assert hashlib.sha256(footer).hexdigest() == part["footer_sha256"]
        assert int.from_bytes(footer[-8:-4], "little") == len(footer) - 8
        metadata = pq.read_metadata(name.with_suffix(".parquet"))
        covered = 4 + len(footer)
        for group, crcs in enumerate(part["chunk_crc32"]):
            for column, crc in enumerate(crcs):
                chunk = metadata.row_group(group).column(column)
                start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
                assert zlib.crc32(data[start : start + chunk.total_compressed_size]) == crc
                covered += chunk.total_compressed_size
        assert covered == len(data)  # nothing but the first PAR1 is left out
        for row in pq.read_table(name.with_suffix(".parquet")).to_pylist():
            rows[row["input_index"]] = row
    assert sorted(rows) == [1, 3, 5, 7]
    assert all((np.array(rows[i][QUERY_0], np.float32) == make_record(i).vectors[QUERY_0]).all() for i in rows)
    failed = [failure for record in records for failure in record["failures"]]
    assert failed == [{"sample_id": "s0", "input_index": 0, "reason": "The image is not an image."}]


def test_the_document_names_every_key_and_column(run_folder):
    record = json.loads(next(iter(sorted((run_folder / "parts").glob("*1.json")))).read_text())
    compact(run_folder)
    (merged,) = (run_folder / "parts").glob("*.json")
    record |= json.loads(merged.read_text())
    run = json.loads((run_folder / "run.json").read_text())
    parts = {"part": record["part"]} | {name: run[name] for name in PARTS_OF_THE_SPEC}
    keys = [*run, *record, *(f"{name}.{key}" for name, part in parts.items() for key in part)]
    for name in keys:
        assert f"| `{name}` |" in DOCUMENT, name
    for name in PARTS_OF_THE_SPEC:
        for field in dataclasses.fields(getattr(make_spec(), name)):
            (line,) = (line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}.{field.name}` |"))
            assert line.endswith(f"| `{field.metadata['option']}` |" if "option" in field.metadata else "|  |")
            assert ("*null*" in line) == field.type.endswith("| None")
    fields = [field for field in dataclasses.fields(Record) if field.name not in ("extras", "vectors")]
    lines = [next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{f.name}` |")) for f in fields]
    assert [DOCUMENT.index(line) for line in lines] == sorted(DOCUMENT.index(line) for line in lines)
    schema = run_schema(make_spec(risks=make_risk_spec()).columns)
    for field, line in zip(fields, lines, strict=True):
        arrow = str(schema.field(field.name).type).replace("list<item: ", "list of ").rstrip(">")
        assert f"| {arrow.replace('float', 'float32').replace('double', 'float64')} |" in line
        assert ("null" in line) == schema.field(field.name).nullable
        for needed in ("answers", "risk"):
            assert (f"*{needed}*" in line) == (needed in field.metadata.get(ONLY_WITH, ()))
    of_risks = DOCUMENT.partition("## Risks")[2].partition("\n## ")[0]
    assert [field.name for field in dataclasses.fields(RiskSpec) if f"`{field.name}`" not in of_risks] == []


def test_reading_a_run_needs_no_torch():
    code = "import sys, midsight.store, midsight.reports.terminal; print(*{'torch', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
