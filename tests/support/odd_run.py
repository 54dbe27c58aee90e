"""A run that is hard to read: odd names, odd values, two shards, compacted, half precision if wanted."""

from pathlib import Path
from typing import Any

import numpy as np

from midsight.records import Record
from midsight.store import RunSpec, RunWriter
from midsight.store.compact import compact
from midsight.store.schema import StoreDtype
from support.made_up import make_record, make_spec

ROWS = 60
VECTORS = {"vision_only_representation": 5, "query_token_representation.layer_16": 8}

_TEXTS = [
    "",
    "007",
    "NA",
    "null",
    "nan",
    "true",
    " x ",
    "a,b",
    'a"b',
    "a\nb",
    "a\r\nb",
    "\t",
    "é",
    "日本",
    "😀",
    "'",
    "=1",
    None,
]
_INTEGERS = [0, -1, 2**53 + 1, 2**63 - 1, -(2**63), None]
_FLOATS = [0.0, -0.0, 0.1, 1e-320, float("nan"), float("inf"), -float("inf"), None]
_BOOLS = [True, False, None]
_JSON = [{"a": [1, None], "b": "é"}, [], {}, None, "text", 2**70]
_VALUES = {"string": _TEXTS, "int64": _INTEGERS, "float64": _FLOATS, "bool": _BOOLS, "json": _JSON}

NAMES = [
    "Answer", "answer", "QUESTION", "Year", "year", "Größe", "Gro\u0308ße", "日本", "😀", "", "a b", "a,b", 'a"b',
    "a'b", "a`b", "a/b", "a\\b", "a.b", "a.b.c", ".", "x.list.element", "element", "input.x", "100%", "#", "select",
    "a\0b", "__index_level_0__", "__metadata__", "x", "x.npy",
]  # fmt: skip
"""Thirty-one input columns."""
EXTRAS = {name: [*_VALUES][index % len(_VALUES)] for index, name in enumerate(NAMES)}


def odd_spec(store_dtype: StoreDtype) -> RunSpec:
    """The spec of the run."""
    return make_spec(vectors=VECTORS, extras=EXTRAS, store_dtype=store_dtype)


def odd_record(index: int, spec: RunSpec) -> Record:
    """The record of one row; its extras go through all odd values, and its vectors hold extreme numbers."""
    extras: dict[str, Any] = {}
    for shift, (name, type_) in enumerate(EXTRAS.items()):
        values = _VALUES[type_]
        extras[name] = values[(index + shift) % len(values)]
    record = make_record(index, spec, extras=extras, image_id=str(index), sample_id=f"{index:03d}")
    for vector in record.vectors.values():
        vector[:4] = [-0.0, 65504, 2.0**-24, -(2.0**-14)]
    return record


def write_odd_run(path: Path, store_dtype: StoreDtype) -> None:
    """Write the run: two shards, rows out of order, compacted, and then continued, so that it has several parts."""
    spec = odd_spec(store_dtype)
    order = np.random.default_rng(0).permutation(ROWS)
    for rows in (order[: ROWS // 2], order[ROWS // 2 :]):
        for number in (0, 1):
            with RunWriter(path, spec, shard=(number, 2), commit_bytes=3_000) as writer:
                for index in rows[number::2]:
                    writer.add(odd_record(int(index), spec))
        if rows[0] == order[0]:
            compact(path)
