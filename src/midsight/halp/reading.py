"""HDF5 parts as they are, read within bounds: the files are untrusted, and HDF5 can point at anything.

Links to elsewhere, virtual and external datasets, references, foreign filters and oversized values are refused. No
object is unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from midsight.errors import first_line
from midsight.halp.layout import ANSWER, FILE_ATTRIBUTES, INPUT_INDEX, OWN_ATTRIBUTES, TEXTS, parse_layer
from midsight.halp.scripts import POSITIONS
from midsight.records import VISION_ONLY
from midsight.store.optional import import_optional

LONGEST_VECTOR = 32_768
"""Maximum width of a vector; the scripts' widest has 7,680 elements."""
LONGEST_TEXT_BYTES = 4_000_000
"""Maximum size of a text."""
MOST_LAYERS = 1_000
"""Maximum number of datasets of one position."""
LONGEST_ATTRIBUTE = 1_000
"""Characters of a file's attribute that are kept."""

HDF5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError, MemoryError)
"""What h5py raises for files that are not what they should be."""
_FILTERS = {1, 2, 3}
"""Deflate, shuffle and Fletcher-32, which every HDF5 has; others would load code."""

VectorKey = tuple[str, int | None]
"""Name of a dataset of vectors, or of a position and the layer."""


class UnreadableError(Exception):
    """A value that is not what the format has; the text says why, about "it"."""


@dataclass(frozen=True)
class StoredSample:
    """What a part holds of one sample."""

    texts: dict[str, str]
    """By name; without those that are missing."""
    vectors: dict[VectorKey, np.ndarray]
    """Each [width], as it is stored."""
    problems: list[tuple[str, str]]
    """Name of a dataset that cannot be used, and why."""


@contextmanager
def open_part(path: Path) -> Iterator[Any]:
    """The open file; raises UnreadableError if it cannot be opened."""
    h5py = import_optional("h5py")
    try:
        if not path.is_file():
            raise UnreadableError("it is not a file")
        file = h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise UnreadableError(f"it is truncated, damaged or not HDF5 ({first_line(error)})") from error
    with file:
        yield file


def read_attributes(file: Any) -> dict[str, str]:
    """The known attributes of a file, as texts."""
    found = {name: _attribute(file, name) for name in (*FILE_ATTRIBUTES, *OWN_ATTRIBUTES)}
    return {name: str(value)[:LONGEST_ATTRIBUTE] for name, value in found.items() if value is not None}


def sample_names(file: Any, *, by_midsight: bool) -> list[str]:
    """The names of the samples' groups: by row if midsight wrote them, else as HDF5 lists them."""
    names = list(file)
    rows = {name: _input_index(file, name) for name in names} if by_midsight else {}
    return sorted(names, key=lambda name: rows.get(name, -1))


def vector_widths(file: Any, name: str) -> dict[VectorKey, int]:
    """The width of every usable vector of a sample, without reading them."""
    widths: dict[VectorKey, int] = {}
    for key, dataset in _vector_datasets(_group(file, name), []):
        try:
            widths[key] = _width(dataset)
        except (UnreadableError, *HDF5_ERRORS):
            continue
    return widths


def has_answer(file: Any, name: str) -> bool:
    """Whether there is an answer, or anything of that name, in a sample's group."""
    try:
        group = _group(file, name)  # its links end with it
        return group.id.links.exists(ANSWER.encode())
    except (UnreadableError, *HDF5_ERRORS):
        return False


def read_sample(file: Any, name: str) -> StoredSample:
    """The texts and vectors of a sample; raises UnreadableError if it is not a group of this file."""
    group = _group(file, name)
    problems: list[tuple[str, str]] = []
    texts: dict[str, str] = {}
    for text in TEXTS:
        try:
            if (found := _text(group, text)) is not None:
                texts[text] = found
        except (UnreadableError, *HDF5_ERRORS) as error:
            problems.append((text, first_line(error)))
    vectors: dict[VectorKey, np.ndarray] = {}
    for key, dataset in _vector_datasets(group, problems):
        try:
            _width(dataset)
            vectors[key] = dataset[()].reshape(-1)
        except (UnreadableError, *HDF5_ERRORS) as error:
            problems.append((spell_key(key), first_line(error)))
    return StoredSample(texts, vectors, problems)


def spell_key(key: VectorKey) -> str:
    """The dataset's name within a sample's group."""
    return key[0] if key[1] is None else f"{key[0]}/layer_{key[1]}"


def _group(file: Any, name: str) -> Any:
    h5py = import_optional("h5py")
    try:
        group = _child(file, name)
    except HDF5_ERRORS as error:
        raise UnreadableError(f"it cannot be read ({first_line(error)})") from error
    if not isinstance(group, h5py.Group):
        raise UnreadableError("it is not a group")
    return group


def _child(group: Any, name: str) -> Any:
    """The object `name` in a group; None if it is not there. Raises UnreadableError for a link to elsewhere."""
    h5py = import_optional("h5py")
    spelled = name.encode("utf-8", "surrogateescape")
    if not group.id.links.exists(spelled):
        return None
    if group.id.links.get_info(spelled).type != h5py.h5l.TYPE_HARD:
        raise UnreadableError("it is a link to another place or file, which is not followed")
    return group[name]


def _vector_datasets(group: Any, problems: list[tuple[str, str]]) -> Iterator[tuple[VectorKey, Any]]:
    """Every dataset that should hold a vector; what else is in their place goes to `problems`."""
    try:
        if (vision := _child(group, VISION_ONLY)) is not None:
            yield (VISION_ONLY, None), vision
    except (UnreadableError, *HDF5_ERRORS) as error:
        problems.append((VISION_ONLY, first_line(error)))
    for position in POSITIONS:
        for name, layer in _layers(group, position, problems):
            try:
                yield (position, layer), _child(group[position], name)
            except (UnreadableError, *HDF5_ERRORS) as error:
                problems.append((f"{position}/{name}", first_line(error)))


def _layers(group: Any, position: str, problems: list[tuple[str, str]]) -> list[tuple[str, int]]:
    """Name and layer of each dataset of a position."""
    h5py = import_optional("h5py")
    try:
        found = _child(group, position)
        if found is None:
            return []
        if not isinstance(found, h5py.Group) or len(found) > MOST_LAYERS:
            raise UnreadableError(f"it is not a group of at most {MOST_LAYERS} layers")
        names = [(name, parse_layer(name)) for name in found]
    except (UnreadableError, *HDF5_ERRORS) as error:
        problems.append((position, first_line(error)))
        return []
    problems += [(f"{position}/{name}", "its name is not that of a layer") for name, layer in names if layer is None]
    return sorted(((name, layer) for name, layer in names if layer is not None), key=lambda pair: pair[1])


def _width(dataset: Any) -> int:
    """The elements of a vector; raises UnreadableError for anything that is not a vector of bounded size."""
    _require_plain(dataset, LONGEST_VECTOR * 8)
    if dataset.dtype.kind != "f" or dataset.dtype.itemsize > 8:
        raise UnreadableError(f"it holds {dataset.dtype}, not floats")
    if not (len(dataset.shape) == 1 or (len(dataset.shape) == 2 and dataset.shape[0] == 1)):
        raise UnreadableError(f"its shape is {list(dataset.shape)}, not that of a vector")
    if not 0 < dataset.shape[-1] <= LONGEST_VECTOR:
        raise UnreadableError(f"it has {dataset.shape[-1]} elements; at most {LONGEST_VECTOR} are read")
    return dataset.shape[-1]


def _require_plain(dataset: Any, most_bytes: int) -> None:
    """Raises UnreadableError unless a dataset lies in its own file, in a size that its bytes can have."""
    h5py = import_optional("h5py")
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise UnreadableError("it is not a dataset with values")
    if dataset.is_virtual or dataset.external:
        raise UnreadableError("its values are in another file, which is not read")
    size = prod(dataset.shape) * dataset.dtype.itemsize
    chunk = prod(dataset.chunks or ()) * dataset.dtype.itemsize
    # A compressed chunk may unfold to a thousand times its size, so its size on disk is bounded by the vector's.
    stored = dataset.id.get_storage_size()
    if max(size, chunk) > most_bytes or stored > size * 1.01 + 4096:
        raise UnreadableError(f"it takes {max(size, chunk, stored):,} bytes, too many for such a value")
    properties = dataset.id.get_create_plist()
    filters = {properties.get_filter(index)[0] for index in range(properties.get_nfilters())}
    if filters - _FILTERS:
        raise UnreadableError("it is stored by a filter that is not used here")


def _text(group: Any, name: str) -> str | None:
    """A text, UTF-8 whatever its tag says; bytes that are not become U+FFFD. None if it is missing."""
    h5py = import_optional("h5py")
    dataset = _child(group, name)
    if dataset is None:
        return None
    _require_plain(dataset, LONGEST_TEXT_BYTES)
    if h5py.check_string_dtype(dataset.dtype) is None or prod(dataset.shape) != 1:
        raise UnreadableError("it is not one text")
    value = dataset[()]
    value = value if isinstance(value, bytes | str) else value.reshape(-1)[0]
    data = value.encode() if isinstance(value, str) else bytes(value)
    if len(data) > LONGEST_TEXT_BYTES:
        raise UnreadableError(f"it has {len(data):,} bytes; at most {LONGEST_TEXT_BYTES:,} are read")
    return data.decode("utf-8", "replace")


def _attribute(owner: Any, name: str) -> str | int | float | None:
    """An attribute that is one text or number; None if it is missing or anything else."""
    h5py = import_optional("h5py")
    try:
        if name not in owner.attrs:
            return None
        found = owner.attrs.get_id(name)
        is_text = h5py.check_string_dtype(found.dtype) is not None
        if found.shape != () or not (is_text or found.dtype.kind in "iuf"):
            return None
        value = owner.attrs[name]
    except HDF5_ERRORS:
        return None
    if is_text:
        return value if isinstance(value, str) else bytes(value).decode("utf-8", "replace")
    return value.item()


def _input_index(file: Any, name: str) -> int:
    """The row of a sample; -1 if it is not known."""
    try:
        value = _attribute(_group(file, name), INPUT_INDEX)
    except UnreadableError:
        return -1
    return value if isinstance(value, int) else -1
