"""All that the command imports on its way, for the process that the others are forked from."""

from contextlib import suppress
from importlib import import_module

import pandas  # noqa: F401
import PIL.PngImagePlugin  # noqa: F401
import rich.progress
import rich.status  # noqa: F401

import midsight.cli
import midsight.extraction.run
import midsight.reports.terminal
import midsight.store.compact  # noqa: F401

with suppress(ImportError):  # what newer versions of typer import when a command starts
    import_module("typer._adapters")
