"""What an image cell holds, image names or image bytes; and reading those bytes again later."""

from __future__ import annotations

import ast
import binascii
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote

from midsight.errors import MidsightError, SampleError, UnreachableError
from midsight.samples.columnar import read_cell
from midsight.samples.conversations import images_of_conversation, is_conversation
from midsight.samples.delimited import split_row
from midsight.samples.json_rows import json_cells
from midsight.samples.locations import EmbeddedImage, TarLocation, TextLocation
from midsight.samples.text_files import read_again
from midsight.samples.webdataset import read_member
from midsight.samples.written_lists import written_value

_DATA_URI = re.compile(r"(?:data:[^,]*;\s*)?base64(?:,|:(?://)?)", re.IGNORECASE)
"""Also a part of one, as some tools write it."""
_BASE64_OF_IMAGE = re.compile(r"iVBORw0KGgo|[/_]9j[/_]|UklGR|R0lGOD|Qk|SUkq|SUkr|TU0A|AAAA..Z0eX")
"""How base64 of PNG, JPEG, WEBP, GIF, BMP, TIFF, and of AVIF and HEIC begins."""
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]+=*\s*")
_BYTES_AS_PYTHON = re.compile(r"""b(['"])""")
_LONGER_THAN_FILE_NAME = 256
_SHORTEST_BASE64 = 64
"""Shorter text is never taken for an image."""
_LIST_OF_TEXTS = re.compile(r"""\[\s*(?:'[^'\\]*'|"[^"\\]*")(?:(?:\s*,\s*|\s+)(?:'[^'\\]*'|"[^"\\]*"))*\s*,?\s*\]""")
"""As JSON, Python or NumPy write it."""
_TEXT_IN_LIST = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")
_HOLDERS = (
    "image", "image_url", "url", "src", "source", "base64", "b64_json", "image_base64", "img", "image_path", "uri",
)  # fmt: skip
_NUMBERED = re.compile(r"<image_?\d+>")
"""Names of the images in an object like `{"<image_00>": "a.png"}`, as MiniCPM-V's data have it."""
_LIST_OF_NUMBERS = re.compile(r"\[\s*\d{1,3}\s*,")


def image_values(cell: Any) -> list[Any]:
    """One value per image of a cell: the items of a list, also of one written as text, else the cell itself.

    A list of numbers is the bytes of one image. Of an object like `{"image_url": ...}`, what it holds counts, of one
    like `{"<image_00>": ...}` all values in the order of their numbers. Of a conversation, the values are the images in
    its first question.
    """
    if isinstance(cell, str) and cell[:1] in ("[", "{"):
        if _LIST_OF_TEXTS.fullmatch(cell.strip()):
            return [single or double for single, double in _TEXT_IN_LIST.findall(cell)]
        if _LIST_OF_NUMBERS.match(cell):
            return [_bytes_of_text(cell)]
        written = written_value(cell)
        if isinstance(written, dict) or (written and all(isinstance(item, dict) for item in written)):
            cell = written
    if isinstance(cell, dict) and cell and all(map(_NUMBERED.fullmatch, cell)):
        by_number = sorted(cell, key=lambda name: int(re.sub(r"\D", "", name)))
        cell = [cell[name] for name in by_number if cell[name] is not None]
    if isinstance(cell, list) and _is_list_of_bytes(cell):
        return [bytes(cell)]
    if is_conversation(cell):
        images = images_of_conversation(cell)
        if not images:
            raise SampleError("the first question of the conversation has no image.")
        return [*map(_held, images)]
    if not isinstance(cell, list):
        return [_held(cell)]
    return [*map(_held, cell)]


def _held(value: Any) -> Any:
    """The image in an object like `{"image_url": {"url": ...}}`; one with bytes or a path, and others, as they are."""
    if not isinstance(value, dict) or any(value.get(name) is not None for name in ("bytes", "data", "path")):
        return value
    inner = next((value[name] for name in _HOLDERS if value.get(name) is not None), None)
    return value if inner is None else _held(inner)


def embedded_bytes(value: Any) -> bytes | None:
    """The encoded image in a value: bytes, a list of them, base64, or a struct with one of these; None for any other.

    Text is base64 if it has only base64 characters, and begins like base64 of an image or is longer than a
    file name: a path never meets this rule. Raises SampleError for damaged base64.
    """
    if isinstance(value, dict):
        inner = value.get("bytes") if value.get("bytes") is not None else value.get("data")
        if isinstance(inner, str) and len(inner) < _SHORTEST_BASE64:
            return None
        value = inner
    if isinstance(value, bytes):
        return value
    if isinstance(value, list) and _is_list_of_bytes(value):
        return bytes(value)
    return _bytes_of_text(value) if isinstance(value, str) and len(value) >= _SHORTEST_BASE64 else None


def _is_list_of_bytes(values: list[Any]) -> bool:
    return len(values) > 1 and all(type(value) is int and 0 <= value < 256 for value in values)


def _bytes_of_text(text: str) -> bytes | None:
    """The encoded image that a text is: a data URI, base64, or numbers or bytes as Python writes them."""
    uri = _DATA_URI.match(text)
    if uri:
        return _decode_base64(unquote(text[uri.end() :]) if "%" in text else text[uri.end() :])
    if _BYTES_AS_PYTHON.match(text):
        return _bytes_as_python(text.strip())
    if _LIST_OF_NUMBERS.match(text):
        try:
            return bytes(json.loads(text))
        except (ValueError, TypeError) as error:
            raise SampleError(f"the image is a list that is not one of bytes: {error}.") from error
    return _decode_base64(text) if _looks_like_base64(text) else None


def _decode_base64(text: str) -> bytes:
    """Standard and URL-safe base64, with or without line breaks and padding."""
    compact = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64((compact + "=" * (-len(compact) % 4)).encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise SampleError(f"the image is damaged base64: {error}.") from error


def _bytes_as_python(text: str) -> bytes:
    """The bytes that a text like `b'...'` spells, or those of the base64 in it."""
    try:
        spelled = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise SampleError(
            "the image is bytes as Python prints them, and cut off; write the bytes themselves, or base64."
        ) from None
    as_base64 = _BASE64_OF_IMAGE.match(spelled[:64].decode("latin-1"))
    return _decode_base64(spelled.decode("latin-1")) if as_base64 else spelled


def _looks_like_base64(text: str) -> bool:
    begin = text[:_LONGER_THAN_FILE_NAME]
    no_file_name = len(text) >= _LONGER_THAN_FILE_NAME and "." not in text
    return _BASE64.fullmatch(begin) is not None and (no_file_name or _BASE64_OF_IMAGE.match(begin) is not None)


def reference_of(digest: bytes) -> str:
    """The reference of an embedded image: `sha256:` and 16 hex digits of the SHA-256 of its bytes."""
    return f"sha256:{digest.hex()[:16]}"


def read_embedded(image: EmbeddedImage) -> bytes:
    """The image's encoded bytes; raises SampleError if its table is damaged or has changed."""
    try:
        values = image_values(_cell(image))
        encoded = embedded_bytes(values[image.index]) if image.index < len(values) else None
    except UnreachableError:  # which says nothing about the sample
        raise
    except (MidsightError, OSError, ValueError, LookupError, TypeError) as error:
        raise SampleError(f"The image {image} cannot be read again: {error}") from error
    if encoded is None or reference_of(hashlib.sha256(encoded).digest()) != image.reference:
        raise SampleError(f"The image {image} has changed since its dataset was read; leave the file unchanged.")
    return encoded


def _cell(image: EmbeddedImage) -> Any:
    location = image.location
    if isinstance(location, TarLocation):
        return read_member(location, image.column)
    if not isinstance(location, TextLocation):
        return read_cell(location, image.column)
    row = read_again(location)
    if location.columns:
        return split_row(row, location.delimiter)[location.columns.index(image.column)]
    return json_cells(row)[image.column]
