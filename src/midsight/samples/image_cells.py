"""Image cells of a table become image sources, each distinct image one value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from midsight.errors import SampleError
from midsight.samples.images import image_root_path
from midsight.samples.places import ImageUrl, StoredImage
from midsight.samples.rows import Row, shown
from midsight.samples.sample import ImageSource
from midsight.samples.stored import embedded_bytes, image_values, reference_of
from midsight.samples.urls import is_web_address


class ImageCells:
    """Reads the image cells of one dataset; an image that many rows repeat is kept once.

    Without a root no image file is read; web addresses are images only with `allow_urls`.
    """

    def __init__(self, root: Path | None, *, allow_urls: bool = False) -> None:
        self._root = root
        self._allow_urls = allow_urls
        self._resolved_root = root.resolve() if root is not None else None
        self._named: dict[str, tuple[str, tuple[Path]]] = {}
        self._stored: dict[bytes, tuple[StoredImage]] = {}

    def read(self, row: Row, column: str) -> tuple[str, tuple[ImageSource, ...]]:
        """The reference to the row's images, and the images; raises SampleError for what is none.

        Paths become files inside the root. Bytes and base64 stay in the table: the first row that has them stands
        for all. Bytes of a row that cannot be read again are the image.
        """
        cell = _cell(row.cells, column)
        if isinstance(cell, str) and cell in self._named and not cell.startswith("["):
            return self._named[cell]
        values = image_values(cell)
        named = [self._image(value, row, column, index) for index, value in enumerate(values)]
        if len(named) == 1:
            return named[0]
        references = json.dumps([reference for reference, _ in named], ensure_ascii=False)
        return references, tuple(source for _, sources in named for source in sources)

    def _image(self, value: Any, row: Row, column: str, index: int) -> tuple[str, tuple[ImageSource]]:
        """The reference to one image and the image alone: the same objects for all rows that repeat it."""
        encoded = embedded_bytes(value)
        if encoded is None:
            path = value.get("path") if _names_a_path(value) else value
            if not isinstance(path, str):
                whole = row.cells[column]
                if isinstance(whole, list):
                    raise SampleError(f"the image is {shown(whole)}; a list must hold one or more paths or images.")
                raise SampleError(f"the image is {shown(whole)}, not text.")
            if self._allow_urls and is_web_address(path):
                return path, (ImageUrl(path),)
            if self._root is None:
                if is_web_address(path):
                    raise SampleError(f"the image {shown(path)} is a URL; allow web addresses with --allow-urls.")
                raise SampleError(
                    f"the image {shown(path)} is not in the stream; name its folder with --images, or stream the "
                    "dataset's @refs/convert/parquet, which holds the images."
                )
            if path not in self._named:
                self._named[path] = path, (image_root_path(path, self._root, self._resolved_root),)
            return self._named[path]
        digest = hashlib.sha256(encoded).digest()
        if row.place is None:
            return reference_of(digest), (encoded,)
        if digest not in self._stored:
            self._stored[digest] = (StoredImage(row.place, column, index, reference_of(digest)),)
        stored = self._stored[digest]
        return stored[0].reference, stored


def _names_a_path(value: Any) -> bool:
    """Whether it is an image of Hugging Face's that was saved without its bytes."""
    return isinstance(value, dict) and value.keys() <= {"bytes", "path"} and value.get("bytes") is None


def _cell(cells: Mapping[str, Any], column: str) -> Any:
    if column not in cells:
        raise SampleError(f"there is no image (column {column!r}).")
    if cells[column] == []:
        raise SampleError("the image is []; a list must hold one or more paths or images.")
    return cells[column]
