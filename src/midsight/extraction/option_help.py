"""Docstrings of calls that take the fields of a dataclass as keywords."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from textwrap import indent
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def explains_options(*sources: type) -> Callable[[F], F]:
    """A decorator that puts what dataclasses say of their fields below `**options`, the last of a docstring's Args.

    So `help` shows every option, and each is explained once.
    """

    def explained(function: F) -> F:
        before, returns, after = inspect.cleandoc(function.__doc__ or "").partition("\n\nReturns:")
        fields = (inspect.cleandoc(source.__doc__ or "").partition("\nArgs:\n")[2] for source in sources)
        function.__doc__ = "\n".join([before, *(indent(text, " " * 4) for text in fields)]) + returns + after
        return function

    return explained
