"""What an image cell holds, image names or image bytes; and reading those bytes again later."""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import Any

from midsight.errors import MidsightError, SampleError
from midsight.samples.columnar import read_cell
from midsight.samples.delimited import split_row
from midsight.samples.json_rows import json_cells
from midsight.samples.locations import EmbeddedImage, TextLocation

_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_BASE64_OF_IMAGE = re.compile(r"iVBORw0KGgo|/9j/|UklGR|R0lGOD|Qk|SUkq|SUkr|TU0A")
"""How base64 of PNG, JPEG, WEBP, GIF, BMP and TIFF begins."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_LONGER_THAN_FILE_NAME = 256
_SHORTEST_BASE64 = 64
"""Shorter text is never taken for an image."""
_LIST_OF_TEXTS = re.compile(r"""\[\s*(?:'[^'\\]*'|"[^"\\]*")(?:\s*,\s*(?:'[^'\\]*'|"[^"\\]*"))*\s*,?\s*\]""")
_TEXT_IN_LIST = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")


def image_values(cell: Any) -> list[Any]:
    """One value per image of a cell: the items of a list, also of one written as text, else the cell itself."""
    if isinstance(cell, str) and cell.startswith("[") and _LIST_OF_TEXTS.fullmatch(cell.strip()):
        return [single or double for single, double in _TEXT_IN_LIST.findall(cell)]
    return cell if isinstance(cell, list) else [cell]


def embedded_bytes(value: Any) -> bytes | None:
    """The encoded image in a value: bytes, {bytes, path} or base64; None for any other value.

    Text is base64 if it has only base64 characters, and begins like base64 of an image or is longer than a
    file name: a path never meets this rule. Raises SampleError for damaged base64.
    """
    if isinstance(value, dict) and value.keys() <= {"bytes", "path"} and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or len(value) < _SHORTEST_BASE64:
        return None
    uri = _DATA_URI.match(value)
    if uri:
        value = value[uri.end() :]
    elif not _looks_like_base64(value):
        return None
    try:
        return binascii.a2b_base64(b"".join(value.encode("ascii").split()), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise SampleError(f"the image is damaged base64: {error}.") from error


def _looks_like_base64(text: str) -> bool:
    begin = text[:_LONGER_THAN_FILE_NAME]
    no_file_name = len(text) >= _LONGER_THAN_FILE_NAME and "." not in text
    return _BASE64.fullmatch(begin) is not None and (no_file_name or _BASE64_OF_IMAGE.match(begin) is not None)


def reference_of(digest: bytes) -> str:
    """The reference of an embedded image: `sha256:` and 16 hex digits of the SHA-256 of its bytes."""
    return f"sha256:{digest.hex()[:16]}"


def read_embedded(image: EmbeddedImage) -> bytes:
    """The image's encoded bytes; raises SampleError if its table cannot be read or has changed."""
    try:
        values = image_values(_cell(image))
        encoded = embedded_bytes(values[image.index]) if image.index < len(values) else None
    except (MidsightError, OSError, ValueError, LookupError, TypeError) as error:
        raise SampleError(f"The image {image} cannot be read again: {error}") from error
    if encoded is None or reference_of(hashlib.sha256(encoded).digest()) != image.reference:
        raise SampleError(f"The image {image} has changed since its dataset was read; leave the file unchanged.")
    return encoded


def _cell(image: EmbeddedImage) -> Any:
    location = image.location
    if not isinstance(location, TextLocation):
        return read_cell(location, image.column)
    with location.file.open("rb") as file:
        file.seek(location.offset_bytes)
        row = file.read(location.length_bytes)
    if location.columns:
        return split_row(row, location.delimiter)[location.columns.index(image.column)]
    return json_cells(row)[image.column]
