import json
import re
import shutil
from dataclasses import asdict

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from midsight.cli import app
from midsight.errors import CommitError, DamagedRunError, MidsightError, RunError
from midsight.store import RunWriter, open_run, verify
from midsight.store.commits import Commit, part_path, read_record, write_commit
from midsight.store.compact import compact
from midsight.store.parts import digest_part, encode_part
from midsight.store.schema import records_to_table
from midsight.store.spec import write_spec
from midsight.store.verify import drop_bad, verify_run
from support.made_up import (
    QUERY_0,
    RUN_ID,
    WIDTHS,
    content_of,
    files_of,
    make_dataset_spec,
    make_failure,
    make_record,
    make_spec,
)


def write_ten(path):
    """Ten commits of one image each, 30 samples, with a failure in the last of them."""
    with RunWriter(path, make_spec(dataset=make_dataset_spec(rows=31)), commit_seconds=0) as writer:
        for i in range(30):
            writer.add(make_record(i))
        writer.fail(make_failure(30))
    return path


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_ten(tmp_path_factory.mktemp("verify") / "run")


@pytest.fixture
def run_folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def commit_as(path, counter, table):
    """Commit `table` as it is, with a correct record."""
    data = encode_part(table)
    part_path(path, (0, 1), counter).write_bytes(data)
    write_commit(path, Commit((0, 1), counter, digest_part(data), ()), RUN_ID)


def finish(path):
    """What the next start does: the samples that are not done."""
    with RunWriter(path, make_spec(), commit_seconds=0) as writer:
        for i in range(30):
            if f"s{i}" not in writer.done:
                writer.add(make_record(i))
        if "s30" not in writer.done:
            writer.fail(make_failure(30))


def test_a_sound_run_is_counted(run_folder):
    report = verify_run(run_folder)
    assert report.sound
    assert (report.findings, report.notes) == ((), ())
    assert (report.commits, report.parts, report.rows, report.failures, report.absent) == (10, 10, 30, 1, 0)
    assert report.bytes == sum(file.stat().st_size for file in files_of(run_folder, ".parquet"))
    compact(run_folder)
    after = verify_run(str(run_folder))
    assert (after.sound, after.notes, after.parts, after.rows, after.failures) == (True, (), 1, 30, 1)


@pytest.mark.parametrize("counter", range(10))
def test_each_missing_part_is_found(run_folder, counter):
    file = files_of(run_folder, ".parquet")[counter]
    file.unlink()
    (finding,) = verify_run(run_folder).findings
    assert finding.file == f"parts/{file.name}"
    assert "cannot be found" in finding.problem
    with pytest.raises(DamagedRunError, match=file.name):
        open_run(run_folder)


@pytest.mark.parametrize("counter", range(10))
def test_each_missing_record_is_found_but_the_last_looks_like_a_crash(run_folder, counter):
    file = files_of(run_folder, ".json")[counter]
    file.unlink()
    report = verify_run(run_folder)
    assert report.rows == 27
    if counter == 9:
        assert report.sound
        assert report.absent == 4
        assert report.notes[0].startswith(f"parts/{file.stem}.parquet is not committed: a writer died there")
        assert report.notes[1].startswith("4 of the dataset's 31 samples are neither stored nor failed")
        assert len(content_of(run_folder)[0]) == 27
        return
    (finding,) = report.findings
    assert finding.file == f"parts/{file.stem}.parquet"
    assert "its record is missing, and later ones are there" in finding.problem
    with pytest.raises(DamagedRunError, match=file.stem):
        open_run(run_folder)


def test_a_commit_without_any_file_left_is_noted(run_folder):
    for counter in (2, 3, 9):
        for suffix in (".json", ".parquet"):
            (run_folder / "parts" / f"0-of-1-{counter:06d}{suffix}").unlink()
    report = verify_run(run_folder)
    assert report.sound
    assert report.notes[0] == "Shard 0-of-1 lacks 2 commits (2 to 3): dropped, or lost."
    assert report.absent == 10
    finish(run_folder)
    assert verify_run(run_folder).absent == 0


def test_what_is_bad_is_dropped_and_done_again(run_folder):
    expected = content_of(run_folder)
    parts, records = files_of(run_folder, ".parquet"), files_of(run_folder, ".json")
    data = bytearray(parts[1].read_bytes())
    data[500] ^= 4
    parts[1].write_bytes(data)
    parts[3].write_bytes(parts[3].read_bytes()[:-5])
    parts[5].unlink()
    records[7].write_bytes(b"{")
    records[8].unlink()
    names = [f"parts/{file.name}" for file in (parts[1], parts[3], parts[5], records[7], parts[8])]
    assert [finding.file for finding in verify_run(run_folder).findings] == names
    assert len(files_of(run_folder, ".json")) == 9  # looking changes nothing
    report = drop_bad(run_folder)
    assert [finding.file for finding in report.findings] == names
    assert all(finding.dropped for finding in report.findings)
    assert report.sound
    assert [file.stem[-1] for file in files_of(run_folder, ".json")] == ["0", "2", "4", "6", "9"]
    assert [file.stem[-1] for file in files_of(run_folder, ".parquet")] == ["0", "2", "4", "6", "9"]
    again = verify_run(run_folder)
    assert (again.findings, again.rows, again.absent) == ((), 15, 15)
    finish(run_folder)
    assert content_of(run_folder) == expected
    assert verify_run(run_folder).absent == 0


def test_a_merged_part_is_dropped_with_what_is_left_of_its_commits(run_folder):
    expected = content_of(run_folder)
    old = {file: file.read_bytes() for file in (run_folder / "parts").iterdir()}
    compact(run_folder)
    file = files_of(run_folder, ".parquet")[0]
    file.write_bytes(file.read_bytes()[:-1])
    for left in sorted(old)[3:7]:
        left.write_bytes(old[left])
    assert verify_run(run_folder).notes[0].startswith("3 merged commits are still there")
    assert [finding.file for finding in drop_bad(run_folder).findings] == [f"parts/{file.name}"]
    assert list((run_folder / "parts").iterdir()) == []
    finish(run_folder)
    assert content_of(run_folder) == expected


def test_a_sample_that_is_stored_twice_is_refused_and_no_row_that_is_nowhere_else_is_dropped(run_folder):
    expected = content_of(run_folder)
    commit_as(run_folder, 10, records_to_table([make_record(4), make_record(5)], make_spec().columns))
    commit_as(run_folder, 11, records_to_table([make_record(40), make_record(40)], make_spec().columns))
    report = verify_run(run_folder)
    first, second = report.findings
    assert (first.file, second.file) == ("parts/0-of-1-000010.parquet", "parts/0-of-1-000011.parquet")
    assert "its sample 's4' is in 0-of-1-000001 already" in first.problem
    assert "its sample 's40' is in 0-of-1-000011 already" in second.problem
    assert report.rows == 30
    with pytest.raises(DamagedRunError, match="The row 4 of the dataset is in two commits, 0-of-1-000001 and 0-of-1-0"):
        open_run(run_folder)
    assert [finding.dropped for finding in drop_bad(run_folder).findings] == [True, False]
    with pytest.raises(DamagedRunError, match="row 40 of the dataset is in two commits, 0-of-1-000011 and 0-of-1-0000"):
        open_run(run_folder)
    for file in (run_folder / "parts").glob("0-of-1-000011.*"):
        file.unlink()
    assert content_of(run_folder) == expected


def test_a_row_of_the_dataset_that_is_stored_under_two_ids_is_found(run_folder):
    expected = content_of(run_folder)
    commit_as(run_folder, 10, records_to_table([make_record(4, sample_id="other")], make_spec().columns))
    (finding,) = verify_run(run_folder).findings
    assert finding.file == "parts/0-of-1-000010.parquet"
    assert "its row of the dataset, 4, is in 0-of-1-000001 already" in finding.problem
    drop_bad(run_folder)
    assert content_of(run_folder) == expected


def test_what_a_dead_writer_left_goes_with_the_last_commit_and_the_run_opens(run_folder):
    expected = content_of(run_folder)
    part = files_of(run_folder, ".parquet")[9]
    part.with_name("0-of-1-000010.parquet").write_bytes(b"half a part")
    part.write_bytes(b"")
    assert [finding.file for finding in drop_bad(run_folder).findings] == [f"parts/{part.name}"]
    assert len(files_of(run_folder, ".parquet")) == 9
    finish(run_folder)
    assert content_of(run_folder) == expected


def test_a_flipped_bit_that_makes_the_format_a_newer_one_is_damage(run_folder):
    file = run_folder / "run.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 3'))
    (finding,) = verify_run(run_folder).findings
    assert finding.file == "run.json"
    assert "its content does not match its seal" in finding.problem


def copy_from_another_run(run_folder, other, counter):
    """Put the commit with that number of a run with another id in place of this run's."""
    with RunWriter(other, make_spec(run_id="of another run"), commit_seconds=0) as writer:
        for i in range(3 * counter + 3):
            writer.add(make_record(100 + i, image_id=f"{i // 3}"))
    for suffix in (".json", ".parquet"):
        name = f"parts/0-of-1-{counter:06d}{suffix}"
        shutil.copy(other / name, run_folder / name)


def rename_commit(run_folder, old, new):
    for suffix in (".json", ".parquet"):
        (run_folder / f"parts/0-of-1-{old:06d}{suffix}").rename(run_folder / f"parts/0-of-1-{new:06d}{suffix}")


def test_a_commit_copied_from_another_run_is_found_and_never_dropped(run_folder, tmp_path):
    expected = content_of(run_folder)
    copy_from_another_run(run_folder, tmp_path / "other", 4)
    report = verify_run(run_folder)
    (finding,) = report.findings
    assert finding.file == "parts/0-of-1-000004.json"
    assert "was copied from run of another run; move it and its part back there, or delete both" in finding.problem
    assert report.rows == 27
    assert not drop_bad(run_folder).sound
    for file in (run_folder / "parts").glob("0-of-1-000004.*"):
        file.unlink()
    finish(run_folder)
    assert content_of(run_folder) == expected


def test_a_run_json_of_another_run_is_blamed_alone_and_no_commit_is_dropped(run_folder, tmp_path):
    expected = content_of(run_folder)
    own = (run_folder / "run.json").read_bytes()
    with RunWriter(tmp_path / "other", make_spec(run_id="another"), commit_seconds=0):
        pass
    shutil.copy(tmp_path / "other" / "run.json", run_folder / "run.json")
    with pytest.raises(DamagedRunError, match="so one of them was copied from another run; `midsight verify"):
        open_run(run_folder)
    report = drop_bad(run_folder)
    (finding,) = report.findings
    assert (finding.file, finding.dropped) == ("run.json", False)
    assert f"is of run another, and the commits here are of run {RUN_ID}; restore it from a copy" in finding.problem
    (run_folder / "run.json").write_bytes(own)
    assert verify_run(run_folder).sound
    assert content_of(run_folder) == expected


def test_no_commit_is_dropped_where_run_json_and_a_commit_are_of_other_runs(run_folder, tmp_path):
    expected = sorted(path.name for path in (run_folder / "parts").iterdir())
    copy_from_another_run(run_folder, tmp_path / "other", 4)
    with RunWriter(tmp_path / "third", make_spec(run_id="a third"), commit_seconds=0):
        pass
    for run_json in (tmp_path / "other" / "run.json", tmp_path / "third" / "run.json"):
        shutil.copy(run_json, run_folder / "run.json")
        blamed = {finding.file: finding for finding in drop_bad(run_folder).findings}
        assert f"the commits here are of run {RUN_ID}" in blamed["run.json"].problem
        assert not any(finding.dropped for finding in blamed.values())
    assert sorted(path.name for path in (run_folder / "parts").iterdir()) == expected


def test_a_renamed_commit_is_found_and_never_dropped(run_folder):
    expected = content_of(run_folder)
    rename_commit(run_folder, 4, 12)
    report = verify_run(run_folder)
    (finding,) = report.findings
    assert finding.file == "parts/0-of-1-000012.json"
    assert "was renamed: it was written as 0-of-1-000004" in finding.problem
    assert report.rows == 27
    assert not drop_bad(run_folder).sound
    rename_commit(run_folder, 12, 4)
    assert verify_run(run_folder).sound
    (run_folder / "parts/0-of-1-000004.json").rename(run_folder / f"parts/0-of-1-{10**17}.json")
    report = drop_bad(run_folder)
    assert [(finding.file[-15:], finding.dropped) for finding in report.findings] == [
        ("-000004.parquet", False),
        ("0000000000.json", False),
    ]
    assert f"Shard 0-of-1 lacks {10**17 - 10:,} commits (" in report.notes[0] + report.notes[1]
    (run_folder / f"parts/0-of-1-{10**17}.json").rename(run_folder / "parts/0-of-1-000004.json")
    assert content_of(run_folder) == expected


@pytest.mark.parametrize(
    "name", ["0-of-1-0000004", "00-of-1-000004", "1-of-1-000004", "0-of-1-٠٠٠٠٠٤", "0-of-1-٤00004"]
)
def test_only_canonical_names_count(run_folder, name):
    for suffix in (".json", ".parquet"):
        shutil.copy(run_folder / f"parts/0-of-1-000004{suffix}", run_folder / f"parts/{name}{suffix}")
    assert verify_run(run_folder).sound
    assert len(open_run(run_folder)) == 30


def test_with_a_damaged_run_json_names_are_compared_and_run_ids_are_not(run_folder, tmp_path):
    copy_from_another_run(run_folder, tmp_path / "other", 4)
    rename_commit(run_folder, 9, 12)
    (run_folder / "run.json").write_text("{")
    assert [finding.file for finding in verify_run(run_folder).findings] == ["parts/0-of-1-000012.json", "run.json"]


def test_whole_parts_with_other_columns_are_refused_named_and_never_dropped(run_folder):
    table = records_to_table([make_record(40)], make_spec().columns)
    commit_as(run_folder, 10, table.drop_columns(["hard", QUERY_0]))
    other = records_to_table([make_record(41)], make_spec().columns)
    commit_as(run_folder, 11, other.select([*reversed(table.schema.names)]))
    findings = drop_bad(run_folder).findings
    assert f"is whole and its columns are not those of run.json (hard, {QUERY_0})" in findings[0].problem
    assert "is whole and its columns are not those of run.json (another order)" in findings[1].problem
    assert not findings[0].dropped
    assert not findings[1].dropped
    with pytest.raises(DamagedRunError, match=r"not those of run\.json"):
        open_run(run_folder)


def test_a_run_json_with_other_columns_is_blamed_and_not_the_parts(run_folder):
    spec = make_spec(vectors={**WIDTHS, QUERY_0: 9}, dataset=make_dataset_spec(rows=31))
    own = (run_folder / "run.json").read_bytes()
    write_spec(run_folder, spec)
    (finding,) = drop_bad(run_folder).findings
    assert (finding.file, finding.dropped) == ("run.json", False)
    assert f"not those of run.json ({QUERY_0})" in finding.problem
    with pytest.raises(DamagedRunError, match=r"not those of run\.json"):
        open_run(run_folder)
    (run_folder / "run.json").write_bytes(own)
    assert verify_run(run_folder).sound


def test_vectors_that_are_not_finite_are_found(run_folder):
    table = records_to_table([make_record(40)], make_spec().columns)
    index = table.schema.get_field_index(QUERY_0)
    field = table.schema.field(index)
    vector = pa.array([[1.0] * 7 + [float("inf")]], field.type)
    commit_as(run_folder, 10, table.set_column(index, field, vector))
    (finding,) = verify_run(run_folder).findings
    assert f"its column {QUERY_0} holds values that are not finite" in finding.problem


def test_a_record_that_counts_wrongly_is_found(run_folder):
    commit = read_record(run_folder, (0, 1), 2, RUN_ID)
    assert commit.part is not None
    file = files_of(run_folder, ".json")[2]
    for changes in ({"rows": 4}, {"sha256": "0" * 64}, {"chunk_crc32": ((0,) * 30,)}):
        part = type(commit.part)(**{**asdict(commit.part), "chunk_crc32": commit.part.chunk_crc32, **changes})
        write_commit(run_folder, Commit(commit.shard, 2, part, (), commit.created), RUN_ID)
        (finding,) = verify_run(run_folder).findings
        assert finding.file == f"parts/{file.stem}.parquet"


def test_a_damaged_run_json_is_found_and_the_parts_are_verified_anyway(run_folder):
    (run_folder / "run.json").write_text("{")
    part = files_of(run_folder, ".parquet")[0]
    part.write_bytes(b"")
    report = drop_bad(run_folder)
    assert [(finding.file, finding.droppable, finding.dropped) for finding in report.findings] == [
        (f"parts/{part.name}", True, True),
        ("run.json", False, False),
    ]
    assert "restore it from a copy" in report.findings[1].problem
    assert not report.sound
    assert report.rows == 27


def test_what_cannot_be_read_is_not_dropped(run_folder, monkeypatch):
    part = files_of(run_folder, ".parquet")[4]
    opened = type(part).open

    def refuse(path, *arguments, **options):
        if path == part:
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(type(part), "open", refuse)
    report = drop_bad(run_folder)
    (finding,) = report.findings
    assert (finding.droppable, finding.dropped, report.sound) == (False, False, False)
    assert finding.problem.endswith("cannot be read: Permission denied; check the disk and its permissions.")
    assert part.exists()


@pytest.mark.usefixtures("no_waiting")
def test_a_run_that_is_being_written_is_verified_and_not_fixed(run_folder):
    with RunWriter(run_folder, make_spec()) as writer:
        writer.add(make_record(31))
        assert verify_run(run_folder).rows == 30
        files_of(run_folder, ".parquet")[0].write_bytes(b"")
        with pytest.raises(RunError, match="is being written by process"):
            drop_bad(run_folder)


def test_a_shard_that_starts_meanwhile_keeps_the_part_that_it_commits(tmp_path, monkeypatch):
    with RunWriter(tmp_path, make_spec(), shard=(0, 2)) as writer:
        writer.add(make_record(0))
    bad, late = part_path(tmp_path, (0, 2), 0), part_path(tmp_path, (1, 2), 0)
    bad.write_bytes(b"")
    examine_all = verify.examine_all

    def examine_while_it_starts(*arguments):
        late.write_bytes(b"its record comes next")
        examine_all(*arguments)

    monkeypatch.setattr(verify, "examine_all", examine_while_it_starts)
    assert drop_bad(tmp_path).sound
    assert not bad.exists()
    assert late.exists()


def test_a_disk_that_refuses_to_delete_is_reported(run_folder, monkeypatch):
    files_of(run_folder, ".parquet")[0].write_bytes(b"")

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(CommitError, match="could not be repaired: Read-only file system"):
        drop_bad(run_folder)


def test_a_folder_without_a_run_is_not_verified(tmp_path):
    for act in (verify_run, drop_bad):
        with pytest.raises(MidsightError, match=r"is not a run folder: it has no run\.json"):
            act(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_what_is_bad_and_what_to_do(run_folder):
    call = CliRunner().invoke
    done = call(app, ["verify", str(run_folder)])
    assert done.exit_code == 0
    assert done.output == f"{run_folder}: 10 parts, 30 good rows, 1 failed sample; sound.\n"
    part = files_of(run_folder, ".parquet")[4]
    part.write_bytes(part.read_bytes()[:-1])
    done = call(app, ["verify", str(run_folder)])
    assert done.exit_code == 1
    sentence = rf"The part {part} is damaged: it has [\d,]+ bytes instead of [\d,]+; delete it and {part.stem}\.json"
    assert re.match(sentence, done.output)
    assert f"midsight verify {run_folder} --drop-bad" in done.output
    data = json.loads(call(app, ["verify", str(run_folder), "--json"]).output)
    assert (data["sound"], data["rows"], data["findings"][0]["file"]) == (False, 27, f"parts/{part.name}")
    done = call(app, ["verify", str(run_folder), "--drop-bad"])
    assert done.exit_code == 0
    assert done.output.startswith(f"Dropped: The part {part} is damaged")
    assert call(app, ["verify", str(run_folder)]).exit_code == 0
    assert call(app, ["verify", str(run_folder / "parts")]).exit_code == 2
