"""The run folder: its columns, its writer and its reader. docs/format.md specifies what is on disk."""

from midsight.store.reader import Run, open_run
from midsight.store.spec import RunSpec
from midsight.store.writer import RunWriter

__all__ = ["Run", "RunSpec", "RunWriter", "open_run"]
