"""What an image cell holds: names of images, or their bytes; and reading the bytes again."""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import Any

from midsight.errors import MidsightError, SampleError
from midsight.samples.columnar import read_cell
from midsight.samples.delimited import split_record
from midsight.samples.json_rows import json_cells
from midsight.samples.places import StoredImage, TextPlace

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64_OF_IMAGE = re.compile(r"iVBORw0KGgo|/9j/|UklGR|R0lGOD|Qk|SUkq|SUkr|TU0A")
"""How base64 of PNG, JPEG, WEBP, GIF, BMP and TIFF begins."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_LONGER_THAN_A_NAME = 256
_LIST_OF_TEXTS = re.compile(r"""\[\s*(?:'[^'\\]*'|"[^"\\]*")(?:\s*,\s*(?:'[^'\\]*'|"[^"\\]*"))*\s*,?\s*\]""")
_TEXT_IN_LIST = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


def image_values(cell: Any) -> list[Any]:
    """The images of a cell, one each: a list's items, those of a list that is written as text, else the cell."""
    if isinstance(cell, str) and cell.startswith("[") and _LIST_OF_TEXTS.fullmatch(cell.strip()):
        return [single or double for single, double in _TEXT_IN_LIST.findall(cell)]
    return cell if isinstance(cell, list) else [cell]


def embedded_bytes(value: Any) -> bytes | None:
    """The encoded image that a value holds, as bytes, {bytes, path} or base64; None for all else.

    Text is base64 where it begins as base64 of an image does or is longer than a file name, and has none but
    base64's characters: no path is both. Raises SampleError for base64 that is damaged.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"} and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or len(value) < 64:
        return None
    uri = _DATA_URI.match(value)
    if uri:
        value = value[uri.end() :]
    else:
        begin = value[:_LONGER_THAN_A_NAME]
        long = len(value) >= _LONGER_THAN_A_NAME and "." not in value
        if not _BASE64.fullmatch(begin) or not (long or _BASE64_OF_IMAGE.match(begin)):
            return None
    try:
        return binascii.a2b_base64(b"".join(value.encode("ascii").split()), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise SampleError(f"the image is damaged base64: {error}.") from error


def reference_of(digest: bytes) -> str:
    """What stands for an embedded image: `sha256:` and 16 hex digits, from the SHA-256 of its bytes."""
    return f"sha256:{digest.hex()[:16]}"


def read_stored(image: StoredImage) -> bytes:
    """The image's bytes; raises SampleError where its table cannot be read or is another than before."""
    try:
        values = image_values(_cell(image))
        encoded = embedded_bytes(values[image.index]) if image.index < len(values) else None
    except (MidsightError, OSError, ValueError, LookupError, TypeError) as error:
        raise SampleError(f"The image {image} cannot be read again: {error}") from error
    if encoded is None or reference_of(hashlib.sha256(encoded).digest()) != image.reference:
        raise SampleError(f"The image {image} has changed since its dataset was read; leave the file as it is.")
    return encoded


def _cell(image: StoredImage) -> Any:
    place = image.place
    if not isinstance(place, TextPlace):
        return read_cell(place, image.column)
    with place.file.open("rb") as file:
        file.seek(place.offset_bytes)
        record = file.read(place.length_bytes)
    if place.columns:
        return split_record(record, place.delimiter)[place.columns.index(image.column)]
    return json_cells(record)[image.column]
