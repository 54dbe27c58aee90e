"""A summary as the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from midsight.errors import counted
from midsight.reports.summary import Summary, VectorSummary
from midsight.store.spec import ImportSpec

SHOWN_FAILURES = 10
"""Maximum number of failed samples that are listed; the rest is only counted."""

NUMPY_NAMES = {"float": "float32", "halffloat": "float16"}
"""Common names of Arrow's types of vector elements."""


def in_one_line(text: str) -> str:
    """An id or a reason for the terminal: control characters, newlines included, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def render_summary(summary: Summary) -> RenderableType:
    """The tables of `summary`, for a rich console to print."""
    blocks: list[RenderableType] = [_overview(summary), _columns(summary), _vectors(summary)]
    if summary.imported:
        blocks.append(_origin(summary.imported))
    if summary.failures:
        blocks.append(_failures(summary))
    return Group(*blocks)


def _overview(summary: Summary) -> Table:
    table = Table.grid(padding=(0, 2))
    facts = {
        "run": summary.path,
        "model": summary.model or "unknown",
        "samples": f"{summary.rows:,} stored, {len(summary.failures):,} failed{_of_all(summary)}",
        "images": _images(summary),
        "layers": ", ".join(map(str, summary.layers)) or "none",
        "vectors": _vector_type(summary),
        **_answer_facts(summary),
        **({"renamed": describe_renamed(summary.renamed)} if summary.renamed else {}),
    }
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(value, overflow="fold"))
    return table


def describe_renamed(renamed: Mapping[str, str]) -> str:
    """Input columns whose names midsight or other tools would confuse, with the names that they have in the run."""
    pairs = ", ".join(f"{in_one_line(name)} as {in_one_line(column)}" for name, column in renamed.items())
    return f"input columns stored under another name: {pairs}"


def _of_all(summary: Summary) -> str:
    return "" if summary.dataset_rows is None else f", of {counted(summary.dataset_rows, 'row')}"


def _images(summary: Summary) -> str:
    """Equal pixels under two names are one image here, and two images when a run starts."""
    if summary.image_names in (None, summary.images):
        return f"{summary.images:,}"
    return f"{summary.images:,} by their pixels, {summary.image_names:,} by name"


def _vector_type(summary: Summary) -> str:
    vectors = {vector.name for vector in summary.vectors}
    types = {NUMPY_NAMES.get(column.type, column.type) for column in summary.columns if column.name in vectors}
    return f"{counted(len(vectors), 'column')} of {' and '.join(sorted(types))}; norms: mean, smallest, largest"


def _answer_facts(summary: Summary) -> dict[str, str]:
    if summary.answers is None:
        return {"answers": "none"}
    if summary.imported:
        return {"answers": f"{summary.rows - summary.answers.missing:,} texts, without their tokens"}
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.answers.finish_reasons.items())
    mean = summary.answers.mean_tokens
    return {"answers": "none" if mean is None else f"{reasons}; {mean:.1f} tokens on average"}


def _columns(summary: Summary) -> Table:
    table = Table("column", "type")
    vectors = {vector.name for vector in summary.vectors}
    for column in summary.columns:
        if column.name not in vectors:
            table.add_row(Text(column.name), Text(column.type))
    return table


def _vectors(summary: Summary) -> Table:
    """In 80 columns only names and notes may break, because a number cut short is another number."""
    narrow = [Column(name, no_wrap=True) for name in ("shape", "norm", "min", "max")]
    table = Table(Column("vectors", overflow="fold"), *narrow, "note", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for vector in summary.vectors:
        shape = f"{summary.rows} x {vector.width}"
        norms = ("" if norm is None else f"{norm:.4g}" for norm in (vector.mean_norm, vector.min_norm, vector.max_norm))
        table.add_row(Text(vector.name), shape, *norms, _note(vector, imported=summary.imported is not None))
    return table


def _origin(imported: ImportSpec) -> RenderableType:
    """What an imported run says about its vectors, which midsight did not compute."""
    table = Table(Column("vectors", overflow="fold"), Column("what they are", overflow="fold"), box=SIMPLE_HEAD)
    for name, meaning in imported.columns.items():
        table.add_row(Text(name), Text(in_one_line(meaning)))
    lines = [f"Imported: {imported.source}. {imported.note}", *(f"Left out: {one}" for one in imported.left_out)]
    return Group(*(Text(in_one_line(line)) for line in lines), table)


def _note(vector: VectorSummary, *, imported: bool) -> str:
    notes = []
    if vector.constant:
        notes.append("CONSTANT")
    if vector.non_finite:
        notes.append(f"{counted(vector.non_finite, 'row')} {'missing' if imported else 'not finite'}")
    return ", ".join(notes)


def _failures(summary: Summary) -> RenderableType:
    count = len(summary.failures)
    table = Table("row", "sample", "reason")
    for failure in summary.failures[:SHOWN_FAILURES]:
        cells = (str(failure.input_index), failure.sample_id, failure.reason)
        table.add_row(*(Text(in_one_line(cell)) for cell in cells))
    shown = f", the first {SHOWN_FAILURES} of them" if count > SHOWN_FAILURES else ""
    return Group(Text(f"{count:,} failed{shown}:"), table)
