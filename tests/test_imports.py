"""No module reaches itself through its imports, those under TYPE_CHECKING and by importlib included."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
SURFACE = "midsight"
"""The package's own module names what users import; nothing in the package imports it."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((SOURCE / "midsight").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports anywhere, or names in a string, as importlib takes it."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= (members & known) or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value != SURFACE:
            named.add(node.value)
    return named & known


def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imports(path, {*found}) - {name} for name, path in found.items() if name != SURFACE}


def test_no_module_reaches_itself():
    assert len(list(TopologicalSorter(graph()).static_order())) > 100


def test_that_test_can_fail():
    circular = graph()
    circular["midsight.families.catalogue"] |= {"midsight.checkpoints.hub"}
    with pytest.raises(CycleError):
        TopologicalSorter(circular).prepare()


def test_nothing_imports_the_surface():
    assert [name for name, named in graph().items() if SURFACE in named] == []
