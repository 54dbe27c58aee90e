import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from midsight.errors import DamagedRunError
from midsight.store import RunWriter, open_run
from midsight.store.compact import compact
from midsight.store.files import write_sealed_json
from midsight.store.schema import run_schema
from support.made_up import QUERY_0, RUN_ID, VISION, files_of, make_failure, make_record, make_spec, write_run


@pytest.fixture
def run_folder(tmp_path):
    """Three commits, one image each."""
    write_run(tmp_path, [make_record(i) for i in range(9)], commit_seconds=0)
    return tmp_path


def everything(path):
    """All that a run returns: each column of each row, and the failures."""
    run = open_run(path)
    return list(run.batches(run.columns)), run.failures(), len(run)


def read_or_error(path):
    """What a run returns, or the DamagedRunError that it raises instead."""
    try:
        return everything(path)
    except DamagedRunError as error:
        return error


def flipped(good, position, bit):
    return good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :]


def test_no_flipped_bit_of_a_part_goes_unnoticed(run_folder):
    expected = everything(run_folder)
    run = open_run(run_folder)
    file = files_of(run_folder, ".parquet")[1]
    good = file.read_bytes()
    part = run.commits[1].part
    assert part is not None
    footer = len(good) - part.footer_bytes
    positions = {*range(4), *range(4, footer, 13), *range(footer, len(good) - 8, 29), *range(len(good) - 8, len(good))}
    noticed = harmless = 0
    for position in sorted(positions):
        file.write_bytes(flipped(good, position, position % 8))
        found = read_or_error(run_folder)
        if isinstance(found, DamagedRunError):
            assert file.name in str(found)
            noticed += 1
        else:
            assert found == expected
            assert position < 4  # only the magic at the start says nothing about the data
            harmless += 1
    assert noticed > 300
    assert harmless == 4


def test_a_page_header_is_covered_by_more_than_the_page_checksum(run_folder):
    file = files_of(run_folder, ".parquet")[0]
    good = file.read_bytes()
    index = run_schema(make_spec().columns).names.index(QUERY_0)
    start = pq.read_metadata(file).row_group(0).column(index).data_page_offset
    original = pq.read_table(file, columns=[QUERY_0])
    silent = 0
    for position in range(start, start + 40):
        for bit in range(8):
            file.write_bytes(flipped(good, position, bit))
            with pytest.raises(DamagedRunError, match=f"{file.name} is damaged: its column {QUERY_0} does not match"):
                open_run(run_folder).matrix(QUERY_0)
            try:
                found = pq.ParquetFile(file, page_checksum_verification=True).read(columns=[QUERY_0])
                silent += not found.equals(original)
            except OSError:
                pass
    assert silent > 0  # page checksums alone let wrong numbers through


def test_damage_in_one_column_leaves_the_others_readable(run_folder):
    file = files_of(run_folder, ".parquet")[0]
    index = run_schema(make_spec().columns).names.index(QUERY_0)
    start = pq.read_metadata(file).row_group(0).column(index).data_page_offset
    expected = open_run(run_folder).matrix(VISION)
    file.write_bytes(flipped(file.read_bytes(), start + 50, 3))
    run = open_run(run_folder)
    assert (run.matrix(VISION) == expected).all()
    with pytest.raises(DamagedRunError, match="000000"):
        run.matrix(QUERY_0)


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_a_truncated_part_is_named_on_opening(run_folder, kept):
    file = files_of(run_folder, ".parquet")[1]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DamagedRunError, match=f"{file.name} is damaged: it has .* bytes? instead of"):
        open_run(run_folder)


def test_a_missing_part_is_named_on_opening(run_folder):
    file = files_of(run_folder, ".parquet")[0]
    file.unlink()
    with pytest.raises(DamagedRunError, match=f"{file.name} is damaged: it cannot be found"):
        open_run(run_folder)


def test_a_part_that_goes_after_opening_is_named(run_folder):
    run = open_run(run_folder)
    first, second, _ = files_of(run_folder, ".parquet")
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(DamagedRunError, match=second.name):
        run.table()
    first.unlink()
    with pytest.raises(DamagedRunError, match=first.name):
        run.matrix(VISION)


def test_swapped_parts_are_noticed(run_folder):
    first, second, _ = files_of(run_folder, ".parquet")
    if first.stat().st_size == second.stat().st_size:
        shutil.copy(first, second)
    else:
        second.write_bytes(first.read_bytes().ljust(second.stat().st_size, b"\0")[: second.stat().st_size])
    with pytest.raises(DamagedRunError, match=second.name):
        open_run(run_folder).sample_ids()


def test_no_flipped_bit_of_a_commit_record_goes_unnoticed(tmp_path):
    with RunWriter(tmp_path, make_spec()) as writer:
        writer.add(make_record(0))
        writer.fail(make_failure(1))
    expected = everything(tmp_path)
    (file,) = files_of(tmp_path, ".json")
    good = file.read_bytes()
    for position in range(0, len(good), 3):
        file.write_bytes(flipped(good, position, position % 8))
        found = read_or_error(tmp_path)
        assert file.stem in str(found) if isinstance(found, DamagedRunError) else found == expected


def test_a_lost_record_among_others_is_named(run_folder):
    first, second, _ = files_of(run_folder, ".json")
    second.unlink()
    with pytest.raises(DamagedRunError, match=f"{second.stem}.parquet is damaged: its record is missing"):
        open_run(run_folder)
    assert first.exists()


def test_the_remedy_in_the_error_works_for_a_damaged_commit(run_folder):
    part = files_of(run_folder, ".parquet")[1]
    part.write_bytes(b"")
    with pytest.raises(
        DamagedRunError, match=f"delete it and {part.stem}.json, and run the same extract command again"
    ):
        write_run(run_folder, [])
    part.unlink()
    part.with_suffix(".json").unlink()
    assert len(open_run(run_folder)) == 6
    write_run(run_folder, [make_record(i) for i in (3, 4, 5)])
    assert open_run(run_folder).sample_ids() == [f"s{i}" for i in range(9)]


def test_an_unreadable_file_is_not_called_damaged(run_folder, monkeypatch):
    run = open_run(run_folder)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DamagedRunError, match="cannot be read: Permission denied; check the disk and its permissions"):
        run.sample_ids()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("colour", "red", "colour does not belong there"),
        ("run_id", ..., "run_id is missing"),
        ("part", [], "part is [] instead of an object"),
        ("failures", [{"sample_id": "s1"}], "failures[0].input_index is missing"),
        ("replaces", None, "replaces is null instead of a list"),
        ("replaces", ["0"], 'replaces[0] is "0" instead of a whole number'),
    ],
)
def test_each_kind_of_wrong_json_in_a_commit_record_is_damage_and_named(run_folder, key, value, said):
    file = files_of(run_folder, ".json")[1]
    content = {name: old for name, old in json.loads(file.read_text()).items() if name not in (key, "seal")}
    write_sealed_json(file, content if value is ... else {**content, key: value})
    sentence = (
        f"The commit record {file} is damaged: {said}; delete it and {file.stem}.parquet, "
        "and run the same extract command again."
    )
    with pytest.raises(DamagedRunError, match=f"^{re.escape(sentence)}$"):
        open_run(run_folder)


def test_a_commit_copied_from_another_run_is_named(run_folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    write_run(other, [make_record(i) for i in range(9, 18)], make_spec(run_id="of another run"), commit_seconds=0)
    record = files_of(run_folder, ".json")[2]
    for file in (record, record.with_suffix(".parquet")):
        shutil.copy(other / "parts" / file.name, file)
    sentence = (
        f"The commit record {record} is of run of another run, and run.json is of run {RUN_ID}, so one of them was "
        f"copied from another run; `midsight verify {run_folder}` says which."
    )
    for act in (lambda: open_run(run_folder), lambda: write_run(run_folder, []), lambda: compact(run_folder)):
        with pytest.raises(DamagedRunError, match=f"^{re.escape(sentence)}$"):
            act()


def test_a_renamed_commit_is_named(run_folder):
    record = files_of(run_folder, ".json")[2]
    renamed = record.with_stem("0-of-1-000003")
    record.with_suffix(".parquet").rename(renamed.with_suffix(".parquet"))
    record.rename(renamed)
    sentence = (
        f"The commit record {renamed} was renamed: it was written as {record.stem}; rename it and its part back, or "
        f"delete both if {record.stem}.json is there."
    )
    for act in (lambda: open_run(run_folder), lambda: write_run(run_folder, []), lambda: compact(run_folder)):
        with pytest.raises(DamagedRunError, match=f"^{re.escape(sentence)}$"):
            act()
