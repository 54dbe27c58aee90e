"""The commands of docs/halp.md run, and docs/halp_example.md does what it says, block by block."""

import contextlib
import csv
import io
import re
import runpy
import shlex
import shutil
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midsight.cli import app
from midsight.demo.scenes import ask, draw, make_scene
from midsight.demo.seeing import write_seeing_model
from midsight.store import open_run

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "halp.md").read_text(encoding="utf-8")
EXAMPLE = (DOCS / "halp_example.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)?\n(.*?)```", EXAMPLE, re.DOTALL)


def call(command):
    program, *arguments = shlex.split(command)
    ended = CliRunner().invoke(app, arguments)
    assert (program, ended.exit_code) == ("midsight", 0), (command, ended.output, ended.exception)
    return ended.output


@pytest.mark.slow
def test_the_example_does_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables, printed = {}, ""
    for language, text in BLOCKS:
        if language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Stochastic Optimizer: Maximum iterations")  # 50 epochs, as theirs
                exec(compile(text, "page", "exec"), variables)  # noqa: S102  (our own text)
            printed = out.getvalue()
        elif language == "bash":
            for command in text.splitlines():
                call(command)
        else:
            assert printed == text
    assert [language for language, _ in BLOCKS].count("") == 1
    assert 0 <= variables["auroc"] <= 1


def write_pairs(folder, scenes=8):
    """Their CSV with pictures, and their labels: wrong for one of three questions, whatever the model says."""
    (folder / "images").mkdir()
    with (folder / "pairs.csv").open("w", newline="") as pairs, (folder / "labels.csv").open("w", newline="") as labels:
        rows, verdicts = csv.writer(pairs), csv.writer(labels)
        rows.writerow(["question_id", "image_name", "question", "gt_answer", "source"])
        verdicts.writerow(["question_id", "is_hallucinating_manual", "question", "image_id"])
        for scene in range(scenes):
            draw(make_scene("test", scene)).save(folder / "images" / f"{scene}.png")
            for number, question in enumerate(ask("test", scene)):
                sample_id = f"q_{scene:02}_{number}"
                rows.writerow([sample_id, f"{scene}.png", question.text, question.answer, question.kind])
                verdicts.writerow([sample_id, int((scene + number) % 3 == 0), question.text, f"{scene}.png"])


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path)
    model = write_seeing_model(tmp_path / "demo-model")
    commands = [line for text in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL) for line in text.splitlines()]
    order = ("extract", "export", "import-halp", "label", "probe")
    assert {shlex.split(line)[1] for line in commands} == {*order}
    said = {}
    for line in sorted(commands, key=lambda line: order.index(shlex.split(line)[1])):
        said[line] = call(line.replace("microsoft/Phi-4-multimodal-instruct", str(model)))
    run = open_run("RUN")
    assert run.spec.dataset.image_column == "image_name"
    assert run.sample_ids()[0] == "q_00_0"
    assert "source" in run.columns
    halp = next(text for line, text in said.items() if "--halp" in line)
    assert " ".join(halp.split()).count("HALP's own recipe on query_token_representation.layer_") == 4
    assert halp.count("[mlp]") == 4
    assert open_run("imported").sample_ids() == run.sample_ids()
    words = ["extract", "pairs.csv", "--images", "images", "--model", str(model), "--out", "imported"]
    refused = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert refused.exit_code != 0
    assert "imported was imported, and this call would extract other rows into it; use another --out." in refused.output
    shutil.rmtree(tmp_path / "images")


def test_the_tables_name_commands_and_options_that_exist():
    for command in re.findall(r"`(midsight [^`]*)`", PAGE):
        name, *rest = shlex.split(command)[1:]
        shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "300"}).output
        assert [word for word in rest if word.startswith("--") and word not in shown] == []


def test_every_script_has_a_row_and_every_column_is_named():
    from midsight.halp.scripts import SCRIPTS

    for script in SCRIPTS.values():
        for quantity in (script.vision_only, script.vision_token, script.query_token):
            assert quantity.column is None or quantity.column in PAGE or quantity.column.startswith("halp_")


@pytest.mark.slow
def test_the_page_has_figures_of_the_families_that_are_here():
    script = runpy.run_path(str(DOCS.parent / "scripts" / "halp_differences.py"))
    rules, families = script["RULES"], script["FAMILIES"]
    figures = PAGE[PAGE.index("<!-- figures -->") : PAGE.index("<!-- end of figures -->")]
    absent = [rule.script for key, rule in rules.items() if key not in families]
    assert absent == ["Molmo"]
    assert f"does not have the family: {', '.join(absent)}." in figures
    for rule in rules.values():
        for position in ("vision", "query"):
            measured = re.search(rf"\| {re.escape(rule.script)} \| {position} token, layer 0 \| [0-9]", figures)
            assert (measured is None) == (rule.script in absent)
