"""The public names, and what an import costs."""

import subprocess
import sys

import pytest

import midsight

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
        "Tap",
        "MidsightError",
        "SampleError",
        "RunError",
        "DamagedRunError",
    ]
    assert all(hasattr(midsight, name) for name in midsight.__all__)
    assert set(midsight.__all__) < set(dir(midsight))


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


def test_that_test_detects_torch():
    assert "torch" in imported_by("import midsight.extraction.extract_call")


def test_the_command_line_starts_without_torch():
    assert imported_by("import midsight.cli") == set()
