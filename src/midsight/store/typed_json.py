"""Dataclasses as JSON and back. Reading is strict: exactly the declared fields, each of its declared type.

Only fields whose metadata has MAY_BE_MISSING may be missing; they then have their default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

MAY_BE_MISSING = "may_be_missing"
"""Key of a field's metadata."""
_NAMES: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
_SHOWN_CHARACTERS = 40


class WrongJsonError(ValueError):
    """JSON that does not fit a dataclass; the text names the value and what belongs there."""


def to_json(value: Any) -> Any:
    """`value` as plain JSON: dataclasses and mappings become objects, tuples become lists.

    Raises TypeError or ValueError for a value that JSON does not have, NaN among them.
    """
    return json.loads(json.dumps(value, default=_as_dict, allow_nan=False))


def from_json(kind: type[T], value: Any, name: str = "") -> T:
    """`value`, which the JSON calls `name`, as a `kind`; raises WrongJsonError.

    A `kind` is a dataclass, text, int, float, bool, a Literal of texts, a tuple or Mapping of these, or one of these or
    None.
    """
    read: Any = _read(kind, value, name)
    return read


@cache
def field_types(kind: type) -> Mapping[str, Any]:
    """The declared type of every field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


@cache
def _optional_fields(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind) if MAY_BE_MISSING in field.metadata)


def _as_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    raise TypeError(f"{type(value).__name__} {value!r} is not a JSON value")


def _read(kind: Any, value: Any, name: str) -> Any:
    if is_dataclass(kind):
        return _read_object(kind, _require(dict, "an object", value, name), name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (member,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else _read(member, value, name)
    if origin is tuple:
        items = _require(list, "a list", value, name)
        if arguments[0] in _NAMES and {*map(type, items)} <= {arguments[0]}:
            return tuple(items)  # quickly: a part has many checksums
        return tuple(_read(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        items = _require(dict, "an object", value, name)
        return {key: _read(arguments[1], item, f"{name}.{key}") for key, item in items.items()}
    if origin is Literal:
        if value in arguments:
            return value
        raise _wrong(name, value, " or ".join(arguments))
    return _require(kind, _NAMES[kind], value, name)


def _read_object(kind: Any, value: Mapping[str, Any], name: str) -> Any:
    types = field_types(kind)
    prefix = f"{name}." if name else ""
    for key in value:
        if key not in types:
            raise WrongJsonError(f"{prefix}{key} does not belong there")
    for key in types:
        if key not in value and key not in _optional_fields(kind):
            raise WrongJsonError(f"{prefix}{key} is missing")
    return kind(**{key: _read(types[key], item, f"{prefix}{key}") for key, item in value.items()})


def _require(kind: type[T], what: str, value: Any, name: str) -> T:
    if type(value) is not kind:  # true is not the number 1
        raise _wrong(name, value, what)
    return value


def _wrong(name: str, value: Any, what: str) -> WrongJsonError:
    shown = json.dumps(value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    return WrongJsonError(f"{name or 'the content'} is {shown} instead of {what}")
