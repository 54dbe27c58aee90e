"""Image cells of a table become image sources."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from midsight.buckets.path import Place
from midsight.errors import Option, SampleError
from midsight.samples.embedded import embedded_bytes, image_values, reference_of
from midsight.samples.images import resolve_image_path
from midsight.samples.locations import EmbeddedImage, ImageUrl
from midsight.samples.rows import Row, quoted_names, shortened_json
from midsight.samples.sample import ImageSource
from midsight.samples.urls import is_web_address

NAME_IN_PATTERN = re.compile(r"\{(?P<name>[^{}:]+)(?::0?(?P<width>\d+)d?)?\}")
"""A column in the pattern of image paths, with the number of digits if it is filled up with zeros."""
MOST_FILES_KEPT = 10_000
"""Files that are remembered, because the next rows often repeat them; all of them would take too much memory."""
_BAD_LIST = "a list must hold one or more paths or images."
_NAMES_IN_STRUCT = ("path", "url", "file_name", "filename")


class ImageCells:
    """Reads the image cells of one dataset; an embedded image that many rows repeat is kept once."""

    def __init__(self, root: Place | None, *, allow_urls: bool = False, follow_links: bool = False) -> None:
        """`root` is the folder of image files; without it a path is a SampleError."""
        self._root = root
        self._allow_urls = allow_urls
        self._follow_links = follow_links
        self._resolved_root = root.resolve() if root is not None else None
        self._files: dict[str, tuple[str, tuple[Place]]] = {}
        self._embedded: dict[bytes, tuple[EmbeddedImage]] = {}

    def read(self, row: Row, columns: Sequence[str], pattern: str | None = None) -> tuple[str, tuple[ImageSource, ...]]:
        """The reference to the row's images, and the images; raises SampleError if its cells hold no images.

        Of several columns, those without a value are left out. A `pattern` makes a path of the row's cells. Paths
        become files inside the root. Bytes and base64 stay in the table, located by the first row that has them;
        those of a stream, which cannot be read again, become bytes in memory.
        """
        if pattern is not None:
            return self._image_by_name(filled_name(pattern, row.cells), None)
        given = [name for name in columns if len(columns) == 1 or not is_missing(row.cells.get(name))]
        cell = _cell(row.cells, given[0]) if given else None
        if len(given) == 1 and isinstance(cell, str) and cell in self._files and not cell.startswith("["):
            return self._files[cell]
        images = [image for name in given for image in self._images_of_cell(row, name)]
        if len(images) == 1:
            return images[0]
        if not images:
            raise SampleError(f"there is no image (columns {quoted_names(columns)}).")
        references = json.dumps([reference for reference, _ in images], ensure_ascii=False)
        return references, tuple(source for _, sources in images for source in sources)

    def _images_of_cell(self, row: Row, column: str) -> list[tuple[str, tuple[ImageSource]]]:
        values = image_values(_cell(row.cells, column))
        return [self._image(value, row, column, index) for index, value in enumerate(values)]

    def _image(self, value: Any, row: Row, column: str, index: int) -> tuple[str, tuple[ImageSource]]:
        """The reference to one image, and the image alone; rows that repeat it get the same objects."""
        encoded = embedded_bytes(value)
        if encoded is None:
            return self._image_by_name(value, row.cells[column])
        digest = hashlib.sha256(encoded).digest()
        if row.location is None:
            return reference_of(digest), (encoded,)
        if digest not in self._embedded:
            self._embedded[digest] = (EmbeddedImage(row.location, column, index, reference_of(digest)),)
        embedded = self._embedded[digest]
        return embedded[0].reference, embedded

    def _image_by_name(self, value: Any, cell: Any) -> tuple[str, tuple[Place] | tuple[ImageUrl]]:
        """The image that a path or web address names; `cell` is the whole cell, for messages."""
        name = (
            next((value[key] for key in _NAMES_IN_STRUCT if value.get(key)), None) if isinstance(value, dict) else value
        )
        if not isinstance(name, str):
            problem = f"; {_BAD_LIST}" if isinstance(cell, list) else ", not text."
            if isinstance(cell, dict) and not is_missing(cell):
                problem = ", not text; give a path, or an object with path, url, bytes or base64."
            raise SampleError(f"the image is {shortened_json(cell)}{problem}")
        if name.startswith("<PIL."):
            raise SampleError(
                f"the image is {shortened_json(name)}, which Python prints for an image object; write the image's path "
                "or its bytes."
            )
        if self._allow_urls and is_web_address(name):
            return name, (ImageUrl(name),)
        if self._root is None:
            raise _not_in_stream(name)
        if name not in self._files:
            if len(self._files) == MOST_FILES_KEPT:
                self._files.clear()
            path = resolve_image_path(name, self._root, self._resolved_root, follow_links=self._follow_links)
            self._files[name] = name, (path,)
        return self._files[name]


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: null, NaN, blank text, an empty list, or an image without bytes and path."""
    if isinstance(value, dict):
        return all(is_missing(inner) for inner in value.values())
    return value is None or value != value or value == [] or (isinstance(value, str) and not value.strip())


def filled_name(pattern: str, cells: Mapping[str, Any]) -> str:
    """The path that a pattern like `{image_id:012}.jpg` makes of a row; raises SampleError for a missing value."""

    def fill(found: re.Match[str]) -> str:
        value = cells.get(found["name"])
        if is_missing(value) or isinstance(value, list | dict | bytes):
            raise SampleError(f"the column {found['name']!r}, which names the image, is {shortened_json(value)}.")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        return text.strip().zfill(int(found["width"] or 0))

    return NAME_IN_PATTERN.sub(fill, pattern)


def _not_in_stream(name: str) -> SampleError:
    shown = shortened_json(name)
    if is_web_address(name):
        return SampleError(
            f"the image {shown} is a URL; allow web addresses with the option ", Option("allow_urls"), "."
        )
    return SampleError(
        f"the image {shown} is not in the stream; name its folder with the option ",
        Option("images"),
        ", or stream the dataset's @refs/convert/parquet, which holds the images.",
    )


def _cell(cells: Mapping[str, Any], column: str) -> Any:
    if column not in cells:
        raise SampleError(f"there is no image (column {column!r}).")
    if cells[column] == []:
        raise SampleError(f"the image is []; {_BAD_LIST}")
    return cells[column]
