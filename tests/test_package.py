"""The promised surface, and what an import costs."""

import subprocess
import sys

import pytest

import midsight

HEAVY = ("torch", "transformers", "torchvision", "peft", "pyarrow", "PIL")


def imported_by(statement: str) -> set[str]:
    """Heavy modules loaded in a fresh interpreter after a statement."""
    program = f"{statement}\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_surface_is_this_and_no_more():
    assert midsight.__all__ == [
        "load",
        "wrap",
        "extract",
        "open_run",
        "Model",
        "Request",
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


def test_a_name_that_is_not_there_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'extractt'"):
        _ = midsight.extractt


def test_importing_midsight_imports_nothing_heavy():
    assert imported_by("import midsight") == set()


def test_reading_runs_needs_no_torch():
    modules = "midsight.records, midsight.store.reader, midsight.store.writer, midsight.samples.tables"
    loaded = imported_by(f"import {modules}, midsight.reports.summary, midsight.reports.terminal")
    assert loaded == {"pyarrow", "PIL"}


def test_that_test_can_fail():
    assert "torch" in imported_by("import midsight.extraction.batch")


def test_the_command_line_starts_without_torch():
    assert imported_by("import midsight.cli") == set()
