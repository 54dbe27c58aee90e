"""The public names, and what an import costs."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import midsight
import midsight.testing

HEAVY = ("torch", "transformers", "torchvision", "peft", "pyarrow", "PIL")


def imported_by(statement: str) -> set[str]:
    """Heavy modules that a statement imports in a new interpreter."""
    program = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_exactly_these():
    assert midsight.__all__ == [
        "load",
        "wrap",
        "extract",
        "open_run",
        "Model",
        "Request",
        "DatasetOptions",
        "Progress",
        "Sample",
        "Failure",
        "Record",
        "Run",
        "Probe",
        "Tap",
        "MidsightError",
        "SampleError",
        "RunError",
        "DamagedRunError",
    ]
    assert all(hasattr(midsight, name) for name in midsight.__all__)
    assert set(midsight.__all__) < set(dir(midsight))


def public_functions():
    """Every function that users call: name and function."""
    places = [(midsight, midsight.__all__), (midsight.testing, midsight.testing.__all__)]
    for module, names in places:
        for name in names:
            member = getattr(module, name)
            if inspect.isfunction(member):
                yield name, member
            elif inspect.isclass(member) and member.__module__.startswith("midsight"):
                ours = [one for one in member.__mro__ if one.__module__.startswith("midsight")]
                own = {key: value for one in ours for key, value in vars(one).items() if not key.startswith("_")}
                functions = {key: getattr(value, "__func__", value) for key, value in own.items()}
                yield from ((f"{name}.{key}", f) for key, f in functions.items() if inspect.isfunction(f))


@pytest.mark.parametrize(("name", "function"), [*public_functions()])
def test_public_functions_say_their_arguments_and_what_they_return_and_raise(name, function):
    """In Google's style, unless a function takes nothing."""
    text = inspect.getdoc(function) or ""
    arguments = [one for one in inspect.signature(function).parameters if one not in ("self", "cls")]
    assert text, name
    if not arguments:
        return
    sections = re.split(r"^(Args|Returns|Raises):$", text, flags=re.MULTILINE)
    titles = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert {"Args", "Returns"} <= set(titles), name
    assert re.findall(r"^    \*{0,2}(\w+):", titles["Args"], re.MULTILINE) == arguments
    assert "Raises" in titles or not re.search(r"^ +raise ", inspect.getsource(function), re.MULTILINE), name


def test_an_unknown_name_raises_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extractt'"):
        _ = midsight.extractt


def test_importing_midsight_imports_nothing_heavy():
    assert imported_by("import midsight") == set()


def test_dataset_options_import_nothing_heavy():
    assert imported_by("import midsight; midsight.DatasetOptions") == set()


def test_reading_runs_needs_no_torch():
    modules = "midsight.records, midsight.store.reader, midsight.store.writer, midsight.samples.tables"
    loaded = imported_by(f"import {modules}, midsight.reports.summary, midsight.reports.terminal")
    assert loaded == {"pyarrow", "PIL"}


def test_probing_needs_no_torch():
    assert "torch" not in imported_by("import midsight.probes.write, midsight.probes.study, midsight.commands.probe")


@pytest.mark.slow
def test_that_test_detects_torch():
    assert "torch" in imported_by("import midsight.extraction.extract_call")


def test_the_command_line_starts_without_torch():
    assert imported_by("import midsight.cli") == set()


def texts_of(source: str) -> list[str]:
    """The string constants of a module that are not docstrings."""
    tree = ast.parse(source)
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_no_message_sends_users_to_a_page_that_an_installed_package_does_not_have():
    assert texts_of('"""docs/a.md"""\nx = f"see docs/{y}"') == ["see docs/"]
    modules = Path(midsight.__file__).parent.rglob("*.py")
    assert [path.name for path in modules if any("docs/" in text for text in texts_of(path.read_text("utf-8")))] == []


@pytest.mark.parametrize(("name", "function"), [*public_functions()])
def test_help_of_public_functions_needs_no_other_page(name, function):
    assert "docs/" not in (inspect.getdoc(function) or ""), name
