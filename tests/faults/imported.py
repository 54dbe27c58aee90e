"""Imports all that the command imports, for the process from which the others are forked."""

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

with suppress(ImportError):  # newer versions of typer import this when a command starts
    import_module("typer._adapters")
