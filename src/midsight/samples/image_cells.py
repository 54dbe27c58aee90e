"""Image cells of a table become image sources; each distinct image is one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midsight.errors import Option, SampleError
from midsight.samples.embedded import embedded_bytes, image_values, reference_of
from midsight.samples.images import resolve_image_path
from midsight.samples.locations import EmbeddedImage, ImageUrl
from midsight.samples.rows import Row, shortened_json
from midsight.samples.sample import ImageSource
from midsight.samples.urls import is_web_address

_BAD_LIST = "a list must hold one or more paths or images."


class ImageCells:
    """Reads the image cells of one dataset; an image that many rows repeat is kept once."""

    def __init__(self, root: Path | None, *, allow_urls: bool = False) -> None:
        """`root` is the folder of image files; without it a path is a SampleError."""
        self._root = root
        self._allow_urls = allow_urls
        self._resolved_root = root.resolve() if root is not None else None
        self._files: dict[str, tuple[str, tuple[Path]]] = {}
        self._embedded: dict[bytes, tuple[EmbeddedImage]] = {}

    def read(self, row: Row, column: str) -> tuple[str, tuple[ImageSource, ...]]:
        """The reference to the row's images, and the images; raises SampleError if the cell holds no images.

        Paths become files inside the root. Bytes and base64 stay in the table, located by the first row that has
        them; those of a stream, which cannot be read again, become bytes in memory.
        """
        cell = _cell(row.cells, column)
        if isinstance(cell, str) and cell in self._files and not cell.startswith("["):
            return self._files[cell]
        images = [self._image(value, row, column, index) for index, value in enumerate(image_values(cell))]
        if len(images) == 1:
            return images[0]
        references = json.dumps([reference for reference, _ in images], ensure_ascii=False)
        return references, tuple(source for _, sources in images for source in sources)

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

    def _image_by_name(self, value: Any, cell: Any) -> tuple[str, tuple[Path] | tuple[ImageUrl]]:
        """The image that a path or web address names; `cell` is the whole cell, for messages."""
        name = value.get("path") if _is_saved_without_bytes(value) else value
        if not isinstance(name, str):
            problem = f"; {_BAD_LIST}" if isinstance(cell, list) else ", not text."
            raise SampleError(f"the image is {shortened_json(cell)}{problem}")
        if self._allow_urls and is_web_address(name):
            return name, (ImageUrl(name),)
        if self._root is None:
            raise _not_in_stream(name)
        if name not in self._files:
            self._files[name] = name, (resolve_image_path(name, self._root, self._resolved_root),)
        return self._files[name]


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


def _is_saved_without_bytes(value: Any) -> bool:
    """Whether it is an image of Hugging Face's `datasets` with a path only."""
    return isinstance(value, dict) and value.keys() <= {"bytes", "path"} and value.get("bytes") is None


def _cell(cells: Mapping[str, Any], column: str) -> Any:
    if column not in cells:
        raise SampleError(f"there is no image (column {column!r}).")
    if cells[column] == []:
        raise SampleError(f"the image is []; {_BAD_LIST}")
    return cells[column]
