"""Labels of a run: stored beside its parts, counted, and joined from files."""

import hashlib
import json
import pickle

import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from midsight.errors import DamagedRunError, MidsightError
from midsight.labels.judge import JudgeOptions
from midsight.labels.label import label_from_file, label_run
from midsight.labels.table import figures
from midsight.store import open_run
from midsight.store.annotations import read_label, read_label_record
from midsight.store.verify import verify_run
from support.made_up import RUN_ID, make_record, make_spec, write_run

ANSWERS = [
    ("Yes.", ("yes",)),  # true positive
    ("Yes", ("no",)),  # false positive
    ("No, none", ("yes",)),  # false negative
    ("no", ("no",)),  # true negative
    ("nope", ("No",)),
    ("I cannot tell.", ("yes",)),
    ("There is a dog.", ("no",)),
    ("yes", ()),
]


@pytest.fixture
def folder(tmp_path):
    records = [make_record(i, answer=answer, reference_answers=wanted) for i, (answer, wanted) in enumerate(ANSWERS)]
    write_run(tmp_path / "run", records)
    return tmp_path / "run"


def values(folder, name="correct"):
    return read_label(folder, RUN_ID, name)["value"].to_pylist()


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "parts").iterdir()}


def test_a_label_has_a_value_a_reason_and_counts_and_leaves_the_parts_alone(folder):
    before = digests(folder)
    record = label_run(open_run(folder), "yes_no")
    assert values(folder) == [True, False, False, True, True, None, None, None]
    assert read_label(folder, RUN_ID, "correct")["reason"].to_pylist() == [
        *[None] * 5,
        *["undecided"] * 2,
        "no reference answer",
    ]
    assert (record.right, record.wrong, record.undecided, record.without_reference) == (3, 2, 2, 1)
    assert record.differs_from_pope == 3  # "nope", the refusal and the statement are yes for POPE
    assert read_label_record(folder, RUN_ID, "correct") == record
    assert digests(folder) == before


def test_the_yes_no_table_gives_the_figures_of_its_definition(folder):
    table = label_run(open_run(folder), "yes_no").table
    assert table is not None
    assert (table.yes_yes, table.yes_no, table.no_yes, table.no_no, table.neither_yes, table.neither_no) == (
        (1, 1, 1, 2, 1, 1)
    )
    assert figures(table, "null") == {"accuracy": 0.6, "precision": 0.5, "recall": 0.5, "f1": 0.5, "yes_rate": 0.4}
    counted = figures(table, "wrong")
    assert (counted["accuracy"], counted["recall"], counted["yes_rate"]) == (3 / 7, 1 / 3, 2 / 7)


def test_a_label_is_replaced_whole(folder):
    label_run(open_run(folder), "yes_no")
    label_run(open_run(folder), "yes_no:pope")
    label_run(open_run(folder), "yes_no", name="lenient", options=JudgeOptions(lenient=True))
    assert values(folder) == [True, False, False, True, False, True, False, None]
    assert values(folder, "lenient")[6] is False
    assert len([*(folder / "annotations").iterdir()]) == 4


def test_a_reference_outside_the_domain_stops_with_its_row(tmp_path):
    records = [make_record(0, reference_answers=("yes",)), make_record(1, reference_answers=("n, o",))]
    write_run(tmp_path / "run", records)
    with pytest.raises(MidsightError, match=r"'n, o' of sample 's1' \(row 1\) is outside .* yes_no needs yes, no"):
        label_run(open_run(tmp_path / "run"), "yes_no")
    assert not (tmp_path / "run" / "annotations").exists()


def test_what_cannot_be_labelled_says_why(tmp_path, folder):
    write_run(tmp_path / "mute", [], make_spec(answers=False))
    with pytest.raises(MidsightError, match="has no answers; extract it with answers=True"):
        label_run(open_run(tmp_path / "mute"), "yes_no")
    write_run(tmp_path / "empty", [], make_spec())
    with pytest.raises(MidsightError, match="holds no samples"):
        label_run(open_run(tmp_path / "empty"), "yes_no")
    with pytest.raises(MidsightError, match=r"name='\.\./x' is not a name"):
        label_run(open_run(folder), "yes_no", name="../x")
    with pytest.raises(MidsightError, match=r"has no label 'correct'; make it with `midsight label`"):
        read_label(folder, RUN_ID, "correct")


@pytest.mark.parametrize("suffix", ["json", "parquet"])
def test_a_damaged_label_is_refused(folder, suffix):
    label_run(open_run(folder), "yes_no")
    (path,) = (folder / "annotations").glob(f"*.{suffix}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedRunError, match="make the label correct again"):
        read_label(folder, RUN_ID, "correct")
    report = verify_run(folder)
    assert [finding.file for finding in report.findings] == ["annotations/correct.json"]
    assert report.rows == len(ANSWERS)


def join(folder, text, suffix="csv", **options):
    file = folder.parent / f"verdicts.{suffix}"
    file.write_text(text, encoding="utf-8")
    given = {"id_column": "id", "column": "verdict", **options}
    return label_from_file(open_run(folder), file, **given)


@pytest.mark.parametrize(
    ("text", "suffix", "options"),
    [
        ("id,verdict\ns0,1\ns1,0\ns2,unclear\nother,1\n", "csv", {"null_words": ["unclear"]}),
        ("id,verdict\ns0,Correct\ns1,incorrect\ns2,\nother,correct\n", "csv", {}),
        ("id\tverdict\ns0\t4.5\ns1\t2\ns2\t\nx\t1\n", "tsv", {"threshold": 3.0}),
        ('{"id": "s0", "verdict": true}\n{"id": "s1", "verdict": false}\n{"id": "s2", "verdict": null}\n'
         '{"id": "x", "verdict": true}\n', "jsonl", {}),
        ('[{"id": "s0", "verdict": 1.0}, {"id": "s1", "verdict": 0}, {"id": "s2", "verdict": 2}, '
         '{"id": "x", "verdict": 1}]', "json", {"null_words": ["2"]}),
    ],
)  # fmt: skip
def test_verdicts_from_a_file_are_joined_by_id(folder, text, suffix, options):
    record, note = join(folder, text, suffix, **options)
    assert values(folder) == [True, False, None, None, None, None, None, None]
    assert (record.right, record.wrong, record.undecided, record.without_reference) == (1, 1, 1, 5)
    assert "3 ids of" in note
    assert "1 is not; 5 samples have no row" in note


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,verdict\ns0,1\ns0,0\n", "line 3 gives the id 's0' another verdict than before"),
        ("id,verdict\ns0,7\n", 'line 2 holds "7", which is neither right nor wrong; give threshold'),
        ("id,verdict\na,1\nb,0\n", "have no id in common, for example 'a' against 's0'"),
        ("id,verdict\ns0,nan\n", 'line 2 holds "nan", which is neither'),
        ("key,verdict\ns0,1\n", "has no column 'id'; choose from 'key', 'verdict' with id"),
        ("id,verdict\n", "have no id in common"),
    ],
)
def test_files_that_do_not_fit_say_why(folder, text, problem):
    with pytest.raises(MidsightError, match=problem):
        join(folder, text)


def test_scores_that_are_no_numbers_are_not_wrong_answers(folder):
    with pytest.raises(MidsightError, match='line 2 holds "nan", which is not a score'):
        join(folder, "id,verdict\ns0,nan\n", threshold=3.0)


def test_the_same_verdict_twice_is_counted(folder):
    assert "1 row repeats an id" in join(folder, "id,verdict\ns0,1\ns0,true\n")[1]


def test_the_command_prints_counts_and_plain_data(folder):
    shown = CliRunner().invoke(app, ["label", str(folder), "--judge", "yes_no"])
    assert shown.exit_code == 0, shown.output
    assert "3 right (60.0 % of 5), 2 wrong, 2 undecided, 1 without reference" in " ".join(shown.output.split())
    assert "3 labels differ from POPE's rule" in shown.output
    assert "Accuracy 0.600, precision 0.500" in " ".join(shown.output.split())
    plain = json.loads(CliRunner().invoke(app, ["label", str(folder), "--judge", "exact", "--json"]).output)
    assert (plain["name"], plain["source"], plain["undecided"]) == ("correct", "exact", 0)


def test_the_command_names_its_own_flags(folder):
    wrong = CliRunner().invoke(app, ["label", str(folder), "--judge", "yes_no", "--undecided", "maybe"])
    assert wrong.exit_code == 2
    assert "--undecided maybe is unknown; choose null or wrong" in wrong.output
    assert CliRunner().invoke(app, ["label", str(folder)]).exit_code == 2


def test_a_run_in_python_has_its_labels(folder):
    run = midsight.open_run(folder)
    assert run.label("yes_no", lenient=True).wrong == 3
    assert run.labels("correct") == [True, False, False, True, True, None, False, None]
    assert pickle.loads(pickle.dumps(run)).label_names == ("correct",)  # noqa: S301  (our own bytes)
    (folder.parent / "v.csv").write_text("sample_id,ok\ns0,1\n")
    assert run.label_from(folder.parent / "v.csv", column="ok", name="mine").right == 1
    assert run.label_names == ("correct", "mine")


def test_rows_that_came_after_the_label_have_no_value(folder):
    midsight.open_run(folder).label("yes_no")
    write_run(folder, [make_record(99)])
    assert midsight.open_run(folder).labels("correct")[-1] is None


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--judge", "yes_no", "--null-words", "x"], "--null-words is for verdicts of a file, and a judge has no use"),
        (["--judge", "yes_no", "--id", "key"], "--id is for verdicts of a file"),
        (["--from", "v.csv", "--column", "ok", "--lenient"], "--lenient is for a judge, and verdicts of a file have"),
        (["--from", "v.csv", "--column", "ok", "--undecided", "wrong"], "--undecided is for a judge"),
    ],
)
def test_options_that_would_change_nothing_are_refused(folder, arguments, problem):
    shown = CliRunner().invoke(app, ["label", str(folder), *arguments])
    assert shown.exit_code == 2
    assert problem in shown.output


def test_counts_of_a_file_speak_of_its_rows(folder):
    (folder.parent / "v.csv").write_text("sample_id,ok\ns0,1\n")
    shown = CliRunner().invoke(app, ["label", str(folder), "--from", str(folder.parent / "v.csv"), "--column", "ok"])
    assert "7 without a row in the file" in " ".join(shown.output.split())


@pytest.mark.parametrize(
    ("extras", "cells"),
    [
        ({"A": "string", "B": "string"}, {"A": "a dog", "B": "a cat"}),
        ({"A": "float64", "B": "string"}, {"A": 2.0, "B": "cat"}),
        ({"options": "json"}, {"options": ["dog", "cat", None]}),
        ({"choices": "json"}, {"choices": {"A": "dog", "B": "cat"}}),
        ({"choices": "string"}, {"choices": "['dog', 'cat']"}),
    ],
)
def test_choices_of_the_data_are_chosen_by_their_text(tmp_path, extras, cells):
    spec = make_spec(extras=extras)
    answers = ["B", "It is a cat.", "I see a dog, or a cat", "A"]
    records = [
        make_record(i, spec, answer=answer, reference_answers=("B",), extras=cells) for i, answer in enumerate(answers)
    ]
    write_run(tmp_path / "run", records, spec)
    label_run(open_run(tmp_path / "run"), "choice")
    assert values(tmp_path / "run")[:2] == [True, True]
    assert values(tmp_path / "run")[3] is False
    label_run(open_run(tmp_path / "run"), "choice:vlmevalkit")
    assert (values(tmp_path / "run")[0], values(tmp_path / "run")[3]) == (True, False)
