"""Where midsight's time goes: clocks around the package's functions, put there from outside."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

PHASES = {
    "vision": ("midsight.models.adapter:encode_images",),
    "prefill": ("midsight.extraction.prefill:prefill", "midsight.extraction.prefill:continue_prefill"),
    "decode": (
        "midsight.extraction.decode:continue_from",
        "midsight.extraction.decode:describe_first_token",
        "midsight.extraction.decode:decode_until",
    ),
    "store": (
        "midsight.store.writer:RunWriter.add",
        "midsight.store.writer:RunWriter.fail",
        "midsight.store.writer:RunWriter.commit",
    ),
}
"""The functions of each phase. What none of them does is `waiting`: the model stands still while images are decoded,
samples planned and results gathered."""


@dataclass
class Clock:
    """Seconds by phase of the thread that started it; of a function inside another, the inner one's."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """What the phases took, each without those inside it."""
    behind: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """The same on other threads, while the model went on."""
    _open: list[float] = field(default_factory=list)
    _thread: int = field(default_factory=threading.get_ident)

    def around(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            own = threading.get_ident() == self._thread
            if own:
                self._open.append(0.0)
            try:
                result = function(*args, **kwargs)
                if own and torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                took = time.perf_counter() - began
                if own:
                    inside = self._open.pop()
                    self.seconds[phase] += took - inside
                    if self._open:
                        self._open[-1] += took
                else:
                    self.behind[phase] += took

        return timed


@contextmanager
def clocked() -> Iterator[Clock]:
    """Times the phases of what runs inside; afterwards the package is as it was.

    Raises AttributeError where a function of PHASES is there no more.
    """
    clock = Clock()
    replaced: list[tuple[object, str, object]] = []
    try:
        for phase, paths in PHASES.items():
            for path in paths:
                holders, name, function = find(path)
                timed = clock.around(phase, function)
                for holder in holders:
                    setattr(holder, name, timed)
                    replaced.append((holder, name, function))
        yield clock
    finally:
        for holder, name, function in replaced:
            setattr(holder, name, function)


def find(path: str) -> tuple[list[object], str, Callable[..., Any]]:
    """Everything in the package that holds the function `module:name` under its name: modules, or its class."""
    module_name, _, qualified = path.partition(":")
    *classes, name = qualified.split(".")
    holder: Any = importlib.import_module(module_name)
    for class_name in classes:
        holder = getattr(holder, class_name)
    function = getattr(holder, name)
    if classes:
        return [holder], name, function
    modules = [module for key, module in list(sys.modules.items()) if key.partition(".")[0] == "midsight"]
    return [module for module in modules if getattr(module, name, None) is function], name, function
