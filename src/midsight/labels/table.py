"""The figures that follow from a yes/no table, as POPE prints them."""

from __future__ import annotations

from collections.abc import Iterable

from midsight.labels.judge import Undecided, Verdict
from midsight.store.annotations import YesNoTable


def count_table(verdicts: Iterable[Verdict]) -> YesNoTable | None:
    """The table of yes/no verdicts; None if no verdict is one."""
    cells = [(verdict.read, verdict.wanted) for verdict in verdicts if verdict.wanted is not None]
    if not cells:
        return None
    return YesNoTable(
        yes_yes=cells.count((True, True)),
        yes_no=cells.count((True, False)),
        no_yes=cells.count((False, True)),
        no_no=cells.count((False, False)),
        neither_yes=cells.count((None, True)),
        neither_no=cells.count((None, False)),
    )


def figures(table: YesNoTable, undecided: Undecided) -> dict[str, float | None]:
    """Accuracy, and precision, recall and F1 of the answer yes, and the share of answers that say yes.

    Args:
        table: The counts.
        undecided: Whether answers that say neither count as wrong, or are left out.

    Returns:
        Shares by name; None where nothing was counted.
    """
    neither = (table.neither_yes, table.neither_no) if undecided == "wrong" else (0, 0)
    decided = table.yes_yes + table.yes_no + table.no_yes + table.no_no
    said_yes = table.yes_yes + table.yes_no
    are_yes = table.yes_yes + table.no_yes + neither[0]
    return {
        "accuracy": _share(table.yes_yes + table.no_no, decided + sum(neither)),
        "precision": _share(table.yes_yes, said_yes),
        "recall": _share(table.yes_yes, are_yes),
        "f1": _share(2 * table.yes_yes, said_yes + are_yes),
        "yes_rate": _share(said_yes, decided + sum(neither)),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
