"""Safe decoding of images to RGB within limits, the identity of pixels, and paths that stay in their folder.

Pillow's readers are called directly, not through `Image.open`. Its size check depends on a setting of the
whole process; here the limits are arguments, and nothing global is read or changed.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from midsight.errors import Option, SampleError
from midsight.samples.embedded import read_embedded
from midsight.samples.locations import EmbeddedImage, ImageUrl
from midsight.samples.sample import ImageSource
from midsight.samples.urls import download

MAX_BYTES = 100_000_000
"""Largest encoded size of an image."""
MAX_PIXELS = 100_000_000
"""Largest width times height of an image."""
MAX_SIDE_PX = 65_535
"""Largest width and height of an image: the most that JPEG and GIF can hold."""

_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_URL = re.compile(r"[a-z][a-z0-9+.-]*://|(data|file|https?):", re.IGNORECASE)


def decode_image(source: ImageSource, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image as RGB pixels (mode RGB, 8 bits per channel), upright by its EXIF orientation.

    Reads PNG, JPEG, WEBP, GIF, BMP and TIFF, recognised by content and not by name, and the first of
    several frames. Transparency is dropped as Pillow's `convert("RGB")` drops it: the colours under it
    show. 16-bit grey keeps the high byte of each value, as Pillow does for 16-bit colour. A decoded
    image is copied, not changed.

    Raises SampleError, with file name and reason, if the source is not a regular file, is damaged or
    truncated, or has no 8-bit RGB form (32-bit integers, floats). The same holds above `max_bytes` or
    `max_pixels`, which is known from the header, before pixels are decoded. If the program has set Pillow's
    `LOAD_TRUNCATED_IMAGES`, truncated images are accepted. Pillow may warn about damaged metadata;
    if warnings are errors, that is a SampleError.
    """
    in_memory = isinstance(source, bytes | Image.Image)
    name = "The image in memory" if in_memory else f"The image {_shortened(str(source), 300)}"
    if isinstance(source, Image.Image):
        return _to_rgb(source, name, max_pixels)
    encoded = _encoded(source, name, max_bytes)
    if not encoded:
        raise SampleError(f"{name} is empty (0 bytes).")
    if len(encoded) > max_bytes:
        raise SampleError(f"{name} has more than {max_bytes:,} bytes; make it smaller.")
    reader = next((reader for magic, reader in _READERS if magic.match(encoded)), None)
    if reader is None:
        raise SampleError(f"{name} contains no PNG, JPEG, WEBP, GIF, BMP or TIFF data; convert it to one of these.")
    try:
        opened = reader(io.BytesIO(encoded))
    except Exception as error:  # Pillow's readers raise many types on damaged data, SyntaxError among them
        raise _damaged(name, error) from error
    with opened:
        return _to_rgb(opened, name, max_pixels)


def image_id(image: Image.Image) -> str:
    """The identity of a decoded RGB image: hex SHA-256 of `{width}x{height}:` and the pixels."""
    return hashlib.sha256(b"%dx%d:" % (image.width, image.height) + image.tobytes()).hexdigest()


def joint_image_id(ids: Sequence[str]) -> str:
    """The identity of a prompt's images: the id of a single image, else the hex SHA-256 of the joined ids."""
    return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()


def resolve_image_path(reference: str, root: Path, resolved_root: Path | None = None) -> Path:
    """The file that a dataset's `reference` names, relative to `root` or absolute, with symlinks resolved.

    `resolved_root` is `root.resolve()`, to save the time for each of many images. The file need not exist:
    `decode_image` finds that out. Raises SampleError for a URL, a blank reference, a NUL character, and any
    path outside `root`, because a dataset must not choose which other files are read.
    """
    if not reference.strip():
        raise SampleError(f"the image path {reference!r} is blank; give a path.")
    shown = repr(_shortened(reference))
    if _URL.match(reference):
        allow = Option("allow_urls")
        raise SampleError(f"{shown} is a URL; allow web addresses with the option ", allow, ", or give a path.")
    try:
        resolved_root = resolved_root or root.resolve()
        resolved = (resolved_root / reference).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, not encodable, a loop of symlinks
        raise SampleError(f"{shown} is not a usable path: {error}.") from error
    if not resolved.is_relative_to(resolved_root):
        images = Option("images")
        raise SampleError(
            f"{shown} lies outside the image folder {root}; name the folder that holds all images with the option ",
            images,
            ".",
        )
    return resolved


def _encoded(source: Path | bytes | EmbeddedImage | ImageUrl, name: str, max_bytes: int) -> bytes:
    match source:
        case bytes():
            return source
        case EmbeddedImage():
            return read_embedded(source)
        case ImageUrl():
            return download(source, max_bytes)
    return _read_file(source, name, max_bytes)


def _read_file(path: Path, name: str, max_bytes: int) -> bytes:
    """The file's bytes, cut off after `max_bytes` + 1; raises SampleError if it is not a regular file."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise SampleError(f"{name} is a folder; give the path of a file.")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for a writer, and a device may never end
            raise SampleError(f"{name} is a pipe, socket or device; give the path of a file.")
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise SampleError(f"{name} does not exist.") from None
    except (OSError, ValueError) as error:
        raise SampleError(f"{name} cannot be read: {_one_line(error)}.") from error


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """An upright copy in RGB; raises SampleError above the limits, before the pixels are loaded."""
    width, height = image.size
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise SampleError(f"{name} is {width} x {height} pixels; each side must have 1 to {MAX_SIDE_PX:,}.")
    if width * height > max_pixels:
        raise SampleError(f"{name} is {width} x {height} pixels; at most {max_pixels:,} are decoded: make it smaller.")
    if image.mode in ("I", "F"):
        numbers = "32-bit integers" if image.mode == "I" else "floats"
        raise SampleError(f"{name} stores {numbers}, which have no known black and white; convert it to 8-bit RGB.")
    try:
        image.load()
        rotation = _UPRIGHT.get(_orientation(image))
        upright = image.copy() if rotation is None else image.transpose(rotation)
        # Metadata is dropped: no later code can rotate the image again, and Pillow warns when it
        # converts a palette whose transparency it would have to keep.
        upright.info = {}
        if upright.mode.startswith("I;16"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    except Exception as error:
        raise _damaged(name, error) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if it is missing or cannot be read."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Warning:  # the program made warnings errors, so it wants to see this one
        raise
    except Exception:  # unreadable EXIF data: the pixels are good, and nothing says that they are rotated
        return 1


def _damaged(name: str, error: Exception) -> SampleError:
    return SampleError(f"{name} cannot be decoded: {_one_line(error)}.")


def _one_line(error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()).rstrip(".") or type(error).__name__


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
