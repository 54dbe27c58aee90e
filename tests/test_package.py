"""The public names, and what an import costs."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

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
        "Ray",
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


def test_help_shows_every_option_of_calls_that_take_them_as_keywords():
    shown = {}
    for name, function in public_functions():
        parameters = inspect.signature(function).parameters.values()
        for unpacked in [one.annotation for one in parameters if one.kind is one.VAR_KEYWORD]:
            (options,) = get_args(eval(unpacked, function.__globals__))  # noqa: S307  (our own annotation)
            fields = re.findall(r"^ {8}(\w+): [A-Z`(]", inspect.getdoc(function) or "", re.MULTILINE)
            assert fields == [*get_type_hints(options)], name
            shown[name] = fields
    assert len(shown.pop("extract")) == 27
    assert {*shown} == {"Model.extract", "Model.extract_many", "Model.score"}


@pytest.mark.parametrize("name", ["Request", "DatasetOptions", "Sample", "Tap"])
def test_help_explains_every_argument_of_classes_that_users_make(name):
    """With the default, unless that is None or empty."""
    made = getattr(midsight, name)
    entries = re.findall(r"^ {4}(\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(made) or "", re.MULTILINE)
    arguments = inspect.signature(made).parameters
    assert [argument for argument, _ in entries if argument != "MidsightError"] == [*arguments]
    if name in ("Request", "DatasetOptions"):
        for argument, text in entries:
            default = arguments[argument].default
            told = default if isinstance(default, tuple) else [] if default is None else [default]
            assert [one for one in told if str(one) not in text.partition("Default:")[2]] == [], argument


def public_docstrings():
    """Every docstring that `help` shows of a public name or its members."""
    for module in (midsight, midsight.testing):
        for name in module.__all__:
            public = getattr(module, name)
            members = {
                key: value
                for one in getattr(public, "__mro__", ())
                if one.__module__.startswith("midsight")
                for key, value in vars(one).items()
                if not key.startswith("_")
            }
            for key, one in {"": public, **members}.items():
                if callable(one) or isinstance(one, property | classmethod):
                    yield f"{name}.{key}".rstrip("."), inspect.getdoc(one) or "", {*members}


def names_that_are_not_public():
    """Functions and classes of the package that users cannot import from its surface."""
    modules = Path(midsight.__file__).parent.rglob("*.py")
    definitions = (node for path in modules for node in ast.parse(path.read_text("utf-8")).body)
    names = {node.name for node in definitions if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names - {*midsight.__all__, *midsight.testing.__all__}


def test_docstrings_of_public_names_name_nothing_else():
    """Neither in backticks nor in capitals nor after `midsight.`."""
    hidden, public = names_that_are_not_public(), {*midsight.__all__, "testing"}
    assert {"LoadedModel", "choose_layers"} < hidden
    for name, text, members in public_docstrings():
        arguments = set(re.findall(r"^ {4,8}(\w+): ", text, re.MULTILINE))
        said = set(re.findall(r"`(\w+)`|\b((?:[A-Z][a-z0-9]+){2,})\b", text))
        assert {word for pair in said for word in pair} & (hidden - members - arguments) == set(), name
        assert set(re.findall(r"\bmidsight\.(\w+)", text)) <= public, name


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
