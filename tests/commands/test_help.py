"""The help of every command, what a command imports before it needs it, and what is said when one is stopped."""

import re
import shlex
import subprocess
import sys

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from midsight import cli
from midsight.commands.outcome import stopped

GROUP = typer.main.get_command(cli.app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
PANELS = ("Data", "What to extract", "Model", "Running", "Storing")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_with_options_that_it_has(name):
    shown = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output
    (example,) = re.findall(r"Example: (midsight .*)", shown)
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("midsight", name)
    COMMANDS[name].make_context(name, arguments)  # raises for an option or a value that the command does not take


def test_the_options_of_extract_are_in_groups():
    shown = CliRunner().invoke(cli.app, ["extract", "--help"], env={"COLUMNS": "100"}).output
    assert [panel for panel in PANELS if f"\u2500 {panel} \u2500" not in shown] == []
    groups = {p.name: getattr(p, "rich_help_panel", None) for p in COMMANDS["extract"].params}
    assert [name for name, group in groups.items() if group not in PANELS and name not in ("data", "debug")] == []


def test_completion_can_be_installed():
    assert "--install-completion" in CliRunner().invoke(cli.app, ["--help"]).output


def imported_by(*calls):
    """Modules that are imported after some commands, each a list of arguments, were called in one new process."""
    program = f"""
import sys
from midsight.cli import app
for call in {calls!r}:
    app(list(call), standalone_mode=False)
print("MODULES", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split()), done.stderr


def test_commands_that_need_no_model_import_no_torch(tmp_path):
    run = str(tmp_path)
    calls = (
        ["extract", "nope.jsonl", "--model", "demo", "--device", "cpu", "--out", str(tmp_path / "run")],
        ["show", run], ["verify", run], ["compact", run], ["label", run, "--judge", "yes_no"],
        ["export", run, "--format", "csv", "--out", str(tmp_path / "a.csv")],
    )  # fmt: skip
    modules, said = imported_by(*calls)
    assert modules & {"torch", "transformers", "torchvision", "peft", "sklearn", "pandas", "datasets"} == set()
    assert said.splitlines()[0] == "Error: nope.jsonl does not exist; give a table file."
    assert len(said.splitlines()) == len(calls)


def test_help_and_version_import_neither_numpy_nor_pyarrow():
    modules, _ = imported_by(["--help"], ["extract", "--help"], ["--version"])
    assert modules & {"torch", "transformers", "numpy", "pyarrow", "PIL", "huggingface_hub"} == set()


def test_python_m_midsight_is_the_command():
    done = subprocess.run([sys.executable, "-m", "midsight", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("midsight ")


def test_a_stopped_command_says_what_is_stored(tmp_path):
    assert stopped(None) == "Stopped."
    assert stopped(tmp_path) == "Stopped before anything was stored; the same command starts again."
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0-of-1-000000.json").write_text("{}")
    assert stopped(tmp_path) == "Stopped. What was finished is stored; the same command resumes from there."
