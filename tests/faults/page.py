"""The tables of docs/reliability.md, which `make faults` writes and a test reads."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from faults.experiment import Experiment, Outcome
from midsight import __version__
from midsight.errors import counted

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by make faults -->", "<!-- end of what make faults wrote -->"
HEADER = ("| experiment | attempts | passed | counts |", "| --- | ---: | ---: | --- |")
_ROW = re.compile(r"\| (?P<name>.+?) \| (?P<tried>[\d,]+) \| (?P<passed>[\d,]+) \| (?P<note>.*?) \|")


@dataclass(frozen=True)
class ReadRow:
    """A row of the page."""

    name: str
    """Name of the experiment."""
    tried: int
    """Number of attempts."""
    passed: int
    """Number of attempts that met every requirement."""
    note: str
    """Counts and measurements."""


def render(group: str, results: Sequence[tuple[Experiment, Outcome]], seed: int, minutes: float) -> str:
    """The section of a group: its heading, a line about the command and the machine, and the table."""
    took = counted(max(1, round(minutes)), "minute")
    lines = [
        f"### {group}",
        "",
        f'`make faults SEED={seed} ONLY="{group}"` on {datetime.now(UTC):%Y-%m-%d}, in {took}, with '
        f"midsight {__version__}, Python {platform.python_version()}, {platform.system()} on {platform.machine()} with "
        f"{os.cpu_count()} cores.",
        "",
        *HEADER,
    ]
    for experiment, outcome in results:
        note = " ".join(outcome.note.split()).replace("|", "/")
        lines.append(f"| {experiment.name} | {outcome.tried:,} | {outcome.passed:,} | {note} |")
    return "\n".join(lines)


def write_page(group: str, section: str, groups: Sequence[str]) -> None:
    """Replaces the section of a group in docs/reliability.md, whose sections come in the order of `groups`."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    tables, after = rest.split(END)
    found = [f"### {text.strip()}" for text in tables.split("### ")[1:]]
    sections = {text.partition("\n")[0].removeprefix("### "): text for text in found} | {group: section}
    text = "\n\n".join(sections[name] for name in groups if name in sections)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def read_page() -> list[ReadRow]:
    """The rows of the tables in docs/reliability.md."""
    tables = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    return [*_rows(tables.splitlines())]


def _rows(lines: Iterable[str]) -> Iterable[ReadRow]:
    for line in lines:
        if matched := _ROW.fullmatch(line):
            tried, passed = (int(matched[name].replace(",", "")) for name in ("tried", "passed"))
            yield ReadRow(matched["name"], tried, passed, matched["note"])
