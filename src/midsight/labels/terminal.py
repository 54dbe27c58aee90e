"""A label's counts as the terminal shows them."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from midsight.errors import counted
from midsight.labels.judge import JUDGES, Undecided
from midsight.labels.table import figures
from midsight.store.annotations import LabelRecord, YesNoTable


def convention(record: LabelRecord) -> Undecided:
    """What the label makes of an answer from which the judge reads nothing."""
    judge = JUDGES.get(record.source)
    published = "wrong" if judge and judge.published else "null"
    return "wrong" if record.options.get("undecided", published) == "wrong" else "null"


def render_label(record: LabelRecord) -> RenderableType:
    """The counts, and for yes/no judges the table with its figures."""
    decided = record.right + record.wrong
    share = f" ({100 * record.right / decided:.1f} % of {decided:,})" if decided else ""
    absent = "without reference" if record.source in JUDGES else "without a row in the file"
    blocks: list[RenderableType] = [
        Text(
            f"Label {record.name} by {record.source}: {record.right:,} right{share}, {record.wrong:,} wrong, "
            f"{record.undecided:,} undecided, {record.without_reference:,} {absent}"
            + (f", {record.abstained:,} abstained." if record.abstained else ".")
        )
    ]
    if record.table is not None:
        blocks += [_yes_no(record.table), Text(_figures_line(record))]
    if record.differs_from_pope is not None and record.source != "yes_no:pope":
        blocks.append(Text(f"{counted(record.differs_from_pope, 'label differs', 'labels differ')} from POPE's rule."))
    return Group(*blocks)


def _yes_no(table: YesNoTable) -> Table:
    shown = Table("reference", "answer yes", "answer no", "neither")
    shown.add_row("yes", f"{table.yes_yes:,}", f"{table.no_yes:,}", f"{table.neither_yes:,}")
    shown.add_row("no", f"{table.yes_no:,}", f"{table.no_no:,}", f"{table.neither_no:,}")
    return shown


def _figures_line(record: LabelRecord) -> str:
    assert record.table is not None  # noqa: S101  (the caller asked)
    shares = figures(record.table, convention(record))
    named = ", ".join(
        f"{name.replace('_', '-')} {'-' if share is None else f'{share:.3f}'}" for name, share in shares.items()
    )
    neither = "wrong" if convention(record) == "wrong" else "left out"
    return f"{named[0].upper()}{named[1:]} (answers that say neither are {neither})."
