"""Writes the page and the summary as files."""

from __future__ import annotations

import json
from pathlib import Path

from midsight.errors import MidsightError, Option, RunError
from midsight.reports.page.content import Report
from midsight.reports.page.html.page import page_of
from midsight.reports.page.summary.choice import ReportOptions
from midsight.reports.page.summary.collect import report_of
from midsight.store.export_target import require_local
from midsight.store.files import write_atomically
from midsight.store.reader import Run
from midsight.store.typed_json import to_json

PAGE_MARK, JSON_MARK = '<meta name="generator" content="midsight ', '{"format": 1, "path": '
"""How files begin, or what stands near their beginning, that earlier reports wrote."""
BEGINNING_BYTES = 2_000


def write_report(run: Run, out: Path, options: ReportOptions, json_out: Path | None = None) -> Report:
    """Writes the page of a run, and its summary as JSON if `json_out` is given.

    Args:
        run: The run.
        out: The HTML file; an earlier report is replaced.
        options: What is shown.
        json_out: The JSON file; an earlier one is replaced.

    Returns:
        The summary.

    Raises:
        MidsightError: An option names what the run does not have, or a file is there that no report wrote.
        RunError: The disk refuses.
    """
    _require_free(out, PAGE_MARK, "out")
    if json_out is not None:
        _require_free(json_out, JSON_MARK, "json")
    report = report_of(run, options)
    _write(out, page_of(report))
    if json_out is not None:
        _write(json_out, f"{json.dumps(to_json(report), allow_nan=False)}\n")
    return report


def _require_free(path: Path, mark: str, option: str) -> None:
    """Raises MidsightError if the path is something that no earlier report wrote."""
    require_local(path, option)
    try:
        if not path.exists():
            return
        with path.open("rb") as file:
            beginning = file.read(BEGINNING_BYTES)
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; choose another ", Option(option), "."
        ) from error
    if mark.encode() not in beginning:
        raise MidsightError(f"{path} exists already and is not a report; choose another ", Option(option), ".")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("utf-8"))
    except OSError as error:
        raise RunError(
            f"{path} could not be written: {error.strerror or error}; fix that and run the same command again."
        ) from error
