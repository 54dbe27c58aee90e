"""How the extras of a dataset are stored: the type of each column, from its values or from a schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import pyarrow as pa

ExtraType = Literal["string", "int64", "float64", "bool", "json"]
"""How an extra column is stored; `json` is JSON text, for values that fit no other type."""

_EXACT_IN_FLOAT64 = 2**53


def type_of_column(type_: pa.DataType) -> ExtraType:
    """The type that holds every value of a column with this Arrow type; dates and decimals are text."""
    if isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    if pa.types.is_boolean(type_):
        return "bool"
    if pa.types.is_integer(type_):
        return "json" if type_ == pa.uint64() else "int64"
    if pa.types.is_floating(type_):
        return "float64"
    return "json" if pa.types.is_nested(type_) else "string"


class ExtraTypes:
    """Finds the type of each extra column from its values, sample by sample."""

    def __init__(self, names: Iterable[str]) -> None:
        """`names` are the columns known in advance; others are added when they occur."""
        self._kinds: dict[str, set[str]] = {name: set() for name in names}

    def add(self, extras: Mapping[str, Any]) -> None:
        """Adds the values of one sample."""
        for name, value in extras.items():
            kinds = self._kinds.setdefault(name, set())
            if value is not None:
                kinds.add(_kind(value))

    def types(self) -> dict[str, ExtraType]:
        """Column -> the narrowest type that holds all its values; null fits every type, only nulls are a string."""
        return {name: _common_type(kinds) for name, kinds in self._kinds.items()}


def _kind(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= _EXACT_IN_FLOAT64:
            return "exact int"
        return "int64" if -(2**63) <= value < 2**63 else "json"
    return {bool: "bool", float: "float64", str: "string"}.get(type(value), "json")


def _common_type(kinds: set[str]) -> ExtraType:
    match sorted(kinds):
        case [] | ["string"]:
            return "string"
        case ["bool"]:
            return "bool"
        case ["exact int"] | ["int64"] | ["exact int", "int64"]:
            return "int64"
        case ["float64"] | ["exact int", "float64"]:
            return "float64"
        case _:
            return "json"
