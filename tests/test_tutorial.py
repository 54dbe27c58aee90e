"""docs/tutorial.md and docs/example.ipynb do what they say, block by block."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midsight.cli import app

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = re.findall(r"```(python|bash)?\n(.*?)```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
NOTEBOOK = json.loads((DOCS / "example.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def execute(text: str, variables: dict) -> str:
    """What the program prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(text, "page", "exec"), variables)  # noqa: S102  (our own text)
    return printed.getvalue()


@pytest.mark.slow
def test_the_tutorial_does_and_prints_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables, printed = {}, ""
    for language, text in BLOCKS:
        if language == "python":
            printed = execute(text, variables)
        elif language == "bash":
            for command in text.splitlines():
                program, *arguments = shlex.split(command)
                ended = CliRunner().invoke(app, arguments)
                assert (program, ended.exit_code) == ("midsight", 0), (command, ended.output)
        else:
            assert printed == text
    assert [language for language, _ in BLOCKS].count("") == 2


@pytest.mark.slow
def test_the_notebooks_cells_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    variables = {}
    for cell in CELLS:
        execute("".join(cell["source"]), variables)
    assert variables["X"].shape == (len(variables["rows"]), 64)
    assert variables["distances"]["same color"] < variables["distances"]["other color"]


def test_the_notebook_is_stored_without_outputs():
    assert NOTEBOOK["nbformat"] == 4
    assert len(CELLS) >= 4
    assert [cell for cell in CELLS if cell["outputs"] or cell["execution_count"] is not None] == []
