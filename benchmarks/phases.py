"""How long midsight spends in each phase: clocks that wrap the package's functions from outside."""

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

from benchmarks.measure import CallMade

PHASES = {
    "vision": ("midsight.families.family:encode_images",),
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
"""The functions of each phase. The rest of the time is `waiting`: the model is idle while images are decoded, calls
planned and results collected."""


@dataclass
class Clock:
    """Seconds by phase. Time in a nested function counts for the inner one only."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Seconds of each phase on the thread that made the clock, without nested phases."""
    background: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Seconds of each phase on other threads, in parallel to the model."""
    _open: list[float] = field(default_factory=list)
    _thread: int = field(default_factory=threading.get_ident)

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps a function so that its time counts for the phase."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            on_own_thread = threading.get_ident() == self._thread
            if on_own_thread:
                self._open.append(0.0)
            try:
                result = function(*args, **kwargs)
                if on_own_thread and torch.cuda.is_available():
                    torch.cuda.synchronize()
                return result
            finally:
                took = time.perf_counter() - began
                if on_own_thread:
                    inside = self._open.pop()
                    self.seconds[phase] += took - inside
                    if self._open:
                        self._open[-1] += took
                else:
                    self.background[phase] += took

        return wrapper


@contextmanager
def clocked() -> Iterator[Clock]:
    """Times the phases of everything that runs inside the context; restores the package afterwards.

    Raises AttributeError if a function of PHASES does not exist.
    """
    clock = Clock()
    replaced: list[tuple[object, str, object]] = []
    try:
        for phase, paths in PHASES.items():
            for path in paths:
                holders, name, function = find(path)
                timed = clock.timed(phase, function)
                for holder in holders:
                    setattr(holder, name, timed)
                    replaced.append((holder, name, function))
        yield clock
    finally:
        for holder, name, function in replaced:
            setattr(holder, name, function)


@contextmanager
def watched_calls() -> Iterator[list[CallMade]]:
    """Notes every call of the model inside the context."""
    from midsight.extraction import extract_call

    original, calls = extract_call.extract_call, list[CallMade]()

    def watched(model: Any, request: Any, call: Any, *args: Any) -> Any:
        began = time.perf_counter()
        outcomes = original(model, request, call, *args)
        answers = [getattr(outcome, "answer_token_ids", None) or () for outcome in outcomes]
        took = time.perf_counter() - began
        calls.append((len(call.items), took, max(map(len, answers)), call.size.unpadded))
        return outcomes

    extract_call.extract_call = watched
    try:
        yield calls
    finally:
        extract_call.extract_call = original


def find(path: str) -> tuple[list[object], str, Callable[..., Any]]:
    """Finds the function `module:name`: all modules that import it (or its class), its name, and the function."""
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
