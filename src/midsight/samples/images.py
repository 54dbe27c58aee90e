"""Safe decoding of images to RGB within limits, the identity of pixels, and paths that stay in their folder.

Pillow's readers are called directly, not through `Image.open`. Its size check depends on a setting of the
whole process; here the limits are arguments, and nothing global is read or changed.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from midsight.buckets.path import BucketPath, Place, is_bucket_address
from midsight.errors import Option, SampleError
from midsight.samples.embedded import read_embedded
from midsight.samples.locations import EmbeddedImage, ImageUrl
from midsight.samples.objects import object_below, read_object
from midsight.samples.sample import ImageSource
from midsight.samples.text_files import describe_stand_in
from midsight.samples.urls import download

MAX_BYTES = 100_000_000
"""Largest encoded size of an image."""
MAX_PIXELS = 100_000_000
"""Largest width times height of an image."""
MAX_SIDE_PX = 65_535
"""Largest width and height of an image: the most that JPEG and GIF can hold."""

STRIP_PIXELS = 2**20
"""Pixels that are hashed together."""

_READERS: tuple[tuple[re.Pattern[bytes], type[ImageFile]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), PngImageFile),
    (re.compile(rb"\xff\xd8\xff"), JpegImageFile),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), WebPImageFile),
    (re.compile(rb"GIF8[79]a"), GifImageFile),
    (re.compile(rb"BM"), BmpImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), TiffImageFile),
    (re.compile(rb"....ftyp(?:avi[fs]|(?:mif1|msf1|miaf).{0,48}?avi[fs])", re.DOTALL), AvifImageFile),
)
_HEIC = re.compile(rb"....ftyp(heic|heix|hevc|hevx|heim|heis|hevm|hevs|mif1|msf1)", re.DOTALL)
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
"""Parts of a PNG that say nothing about its pixels, and that Pillow refuses if they are large."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")

NEARLY_BLACK = 32
"""An image whose brightest 8-bit value is below this shows next to nothing."""


_URL = re.compile(r"[a-z][a-z0-9+.-]*://|(data|file|https?):", re.IGNORECASE)


Note = Callable[[str], None]
"""Takes a sentence that the user should read."""
MOST_NOTES = 20
"""Images that are named in notes; of more, the number is said."""


def say_nothing(_: str) -> None:
    """A Note for callers that have nobody to tell."""


def decode_image(
    source: ImageSource, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, note: Note = say_nothing
) -> Image.Image:
    """The image as RGB pixels (mode RGB, 8 bits per channel), upright by its EXIF orientation.

    Reads PNG, JPEG, WEBP, GIF, BMP, TIFF and AVIF, and HEIC with the package pillow-heif, recognised by content and
    not by name, and the first of several frames. Transparency is dropped as Pillow's `convert("RGB")` drops it: the
    colours under it show. Of 16-bit values the high byte is kept, for grey as Pillow does for colour; if that is
    nearly black, `note` gets a sentence that names it. A decoded image is copied, not changed.

    Raises SampleError, with file name and reason, if the source is not a regular file, is damaged or
    truncated, or has no 8-bit RGB form (32-bit integers, floats). The same holds above `max_bytes` or
    `max_pixels`, which is known from the header, before pixels are decoded. If the program has set Pillow's
    `LOAD_TRUNCATED_IMAGES`, truncated images are accepted. Pillow may warn about damaged metadata;
    if warnings are errors, that is a SampleError.
    """
    in_memory = isinstance(source, bytes | Image.Image)
    name = "The image in memory" if in_memory else f"The image {_shortened(str(source), 300)}"
    if isinstance(source, Image.Image):
        return _to_rgb(source, name, max_pixels, note)
    encoded = _encoded(source, name, max_bytes)
    if not encoded:
        raise SampleError(f"{name} is empty (0 bytes).")
    if len(encoded) > max_bytes:
        raise SampleError(f"{name} has more than {max_bytes:,} bytes; make it smaller.")
    reader = next((reader for magic, reader in _READERS if magic.match(encoded)), None) or _heif_reader(encoded, name)
    try:
        return _read(reader, encoded, name, max_pixels, note)
    except SampleError:
        bare = without_text_chunks(encoded) if reader is PngImageFile else encoded
        if len(bare) == len(encoded):
            raise
        return _read(reader, bare, name, max_pixels, note)


def _read(reader: Any, encoded: bytes, name: str, max_pixels: int, note: Note) -> Image.Image:
    try:
        opened = reader(io.BytesIO(encoded))
    except Exception as error:  # Pillow's readers raise many types on damaged data, SyntaxError among them
        raise _damaged(name, error) from error
    with opened:
        return _to_rgb(opened, name, max_pixels, note)


def _heif_reader(encoded: bytes, name: str) -> Any:
    """The reader of HEIC, which is in a package of its own; raises SampleError if there is no reader for the data."""
    if not _HEIC.match(encoded):
        stand_in = describe_stand_in(encoded[:256])
        remedy = f": it {stand_in}" if stand_in else "; convert it to one of these"
        raise SampleError(f"{name} contains no PNG, JPEG, WEBP, GIF, BMP, TIFF or AVIF data{remedy}.")
    try:
        return import_module("pillow_heif.as_plugin").HeifImageFile
    except ImportError:
        raise SampleError(f"{name} is HEIC; install the package pillow-heif, or convert it to JPEG.") from None


def without_text_chunks(encoded: bytes) -> bytes:
    """A PNG without text and colour profiles, which do not change the pixels that are read."""
    kept, position = [encoded[:8]], 8
    while position + 8 <= len(encoded):
        stop = position + 12 + int.from_bytes(encoded[position : position + 4], "big")
        if encoded[position + 4 : position + 8] not in _TEXT_CHUNKS:
            kept.append(encoded[position:stop])
        position = stop
    return b"".join(kept)


def image_id(image: Image.Image) -> str:
    """The identity of a decoded RGB image: hex SHA-256 of `{width}x{height}:` and the pixels."""
    digest = hashlib.sha256(b"%dx%d:" % (image.width, image.height))
    lines = max(1, STRIP_PIXELS // image.width)  # strips, because Pillow takes twice the size of what it returns
    for top in range(0, image.height, lines):
        digest.update(image.crop((0, top, image.width, min(top + lines, image.height))).tobytes())
    return digest.hexdigest()


def joint_image_id(ids: Sequence[str]) -> str:
    """The identity of a prompt's images: the id of a single image, else the hex SHA-256 of the joined ids."""
    return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()


def resolve_image_path(
    reference: str, root: Place, resolved_root: Place | None = None, *, follow_links: bool = False
) -> Place:
    """The file that a dataset's `reference` names, relative to `root` or absolute, with symlinks resolved.

    `resolved_root` is `root.resolve()`, to save the time for each of many images. The file need not exist:
    `decode_image` finds that out. A name outside ASCII may be spelled in another Unicode form. A link may lead out of
    the root into the files of the same download of the Hub, or anywhere with `follow_links`. In a bucket, an address
    counts as absolute.

    Raises SampleError for a URL, a blank reference, a NUL character, and any other path outside `root`, because a
    dataset must not choose which other files are read.
    """
    if not reference.strip():
        raise SampleError(f"the image path {reference!r} is blank; give a path.")
    shown = repr(_shortened(reference))
    if isinstance(root, BucketPath):
        if is_bucket_address(reference) or not _URL.match(reference):
            return object_below(root, reference, shown)
    elif not _URL.match(reference):
        known = resolved_root if isinstance(resolved_root, Path) else None
        return _file_below(root, reference, shown, known, follow_links=follow_links)
    raise _is_address(reference, shown)


def _file_below(root: Path, reference: str, shown: str, resolved_root: Path | None, *, follow_links: bool) -> Path:
    try:
        resolved_root = resolved_root or root.resolve()
        path = resolved_root / reference
        resolved = path.resolve() if reference.isascii() else in_existing_form(path, resolved_root).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # NUL, not encodable, a loop of symlinks
        raise SampleError(f"{shown} is not a usable path: {error}.") from error
    if resolved.is_relative_to(resolved_root):
        return resolved
    link = _first_link(path, resolved_root)
    if link is None and reference.startswith("/") and (resolved_root / reference.lstrip("/")).is_file():
        raise SampleError(
            f"{shown} lies outside the image folder {root}, but is in it without the first /; leave it out."
        )
    if link is None:
        raise SampleError(
            f"{shown} lies outside the image folder {root}; name the folder that holds all images with the option ",
            Option("images"),
            ".",
        )
    if follow_links or _in_same_download(resolved, resolved_root):
        return resolved
    raise SampleError(
        f"{shown} leads out of the image folder {root} by the link {link} to {resolved}; follow links with the option ",
        Option("follow_links"),
        ", or name the folder that holds all images with the option ",
        Option("images"),
        ".",
    )


def _is_address(reference: str, shown: str) -> SampleError:
    """The error for a reference with a scheme: a web address, a file: address or a data URI."""
    scheme = reference.partition(":")[0].lower()
    if scheme == "file":
        path = unquote(urlsplit(reference).path)
        return SampleError(f"{shown} is a file: address; write it as a path: {_shortened(path)!r}.")
    if scheme == "data":
        return SampleError(f"{shown} is a data URI, but not of an image in base64; write the image's bytes as base64.")
    if is_bucket_address(reference):
        named = Option("images")
        return SampleError(f"{shown} is in a bucket; name the folder there that holds all images with ", named, ".")
    allow = Option("allow_urls")
    return SampleError(f"{shown} is a URL; allow web addresses with the option ", allow, ", or give a path.")


def in_existing_form(path: Path, root: Path) -> Path:
    """The path, each part below the root in the Unicode form in which it exists, if it does in any."""
    if path.exists() or not path.is_relative_to(root):
        return path
    found = root
    for part in path.relative_to(root).parts:
        if part != ".." and not (found / part).exists() and found.is_dir():
            wanted = unicodedata.normalize("NFC", part)
            part = next((e.name for e in found.iterdir() if unicodedata.normalize("NFC", e.name) == wanted), part)
        found /= part
    return found


def _first_link(path: Path, root: Path) -> Path | None:
    """The first link on the way from the root to the path; None if the path leaves the root in another way."""
    if not path.is_relative_to(root) or ".." in path.parts:
        return None
    ways = [*reversed([folder for folder in path.parents if folder.is_relative_to(root)]), path]
    return next((way for way in ways if way.is_symlink()), None)


def _in_same_download(resolved: Path, root: Path) -> bool:
    """Whether a file is a blob of the repository of the Hub whose snapshot holds the root."""
    snapshots = next((folder for folder in (root, *root.parents) if folder.parent.name == "snapshots"), None)
    return snapshots is not None and resolved.is_relative_to(snapshots.parent.parent / "blobs")


def without_bucket(source: ImageSource) -> ImageSource:
    """The source, with the bytes of an object in a bucket in memory: clients of stores do not work in forks.

    Raises SampleError like `decode_image`, and UnreachableError.
    """
    if isinstance(source, BucketPath):
        content = read_object(source, f"The image {_shortened(str(source), 300)}", MAX_BYTES, _hint(str(source)))
        return replace(source, content=content)
    if isinstance(source, EmbeddedImage) and isinstance(source.location.file, BucketPath):
        return read_embedded(source)
    return source


def _encoded(source: Place | bytes | EmbeddedImage | ImageUrl, name: str, max_bytes: int) -> bytes:
    match source:
        case bytes():
            return source
        case EmbeddedImage():
            return read_embedded(source)
        case ImageUrl():
            return download(source, max_bytes)
        case BucketPath():
            return read_object(source, name, max_bytes, _hint(str(source)))
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
        raise SampleError(f"{name} does not exist{_hint(str(path))}.") from None
    except (OSError, ValueError) as error:
        raise SampleError(f"{name} cannot be read: {_one_line(error)}.") from error


def _hint(name: str) -> str:
    """What may be wrong with the name of a file that does not exist; empty if nothing is known."""
    if "\\" in name:
        return "; write / and not \\ between folders"
    return "; its name has signs as in a web address, so write %20 as a space" if _PERCENT.search(name) else ""


def _to_rgb(image: Image.Image, name: str, max_pixels: int, note: Note) -> Image.Image:
    """An upright copy in RGB; raises SampleError above the limits, before the pixels are loaded."""
    width, height = image.size
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX):
        raise SampleError(f"{name} is {width} x {height} pixels; each side must have 1 to {MAX_SIDE_PX:,}.")
    if width * height > max_pixels:
        raise SampleError(f"{name} is {width} x {height} pixels; at most {max_pixels:,} are decoded: make it smaller.")
    if image.mode in ("I", "F"):
        numbers = "32-bit integers" if image.mode == "I" else "floats"
        raise SampleError(f"{name} stores {numbers}, which have no known black and white; convert it to 8-bit RGB.")
    is_deep_grey = image.mode.startswith("I;16")
    has_16_bits = is_deep_grey or ";16" in str(getattr(image, "tile", [])[:1])
    try:
        image.load()
        rotation = _UPRIGHT.get(_orientation(image))
        upright = image.copy() if rotation is None else image.transpose(rotation)
        # Metadata is dropped: no later code can rotate the image again, and Pillow warns when it
        # converts a palette whose transparency it would have to keep.
        upright.info = {}
        if is_deep_grey:
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        if has_16_bits:
            note_if_black(upright.convert("L"), f"{name} stores 16-bit {'grey' if is_deep_grey else 'colour'}", note)
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    except Exception as error:
        raise _damaged(name, error) from error


def note_if_black(image: Image.Image, stored: str, note: Note) -> None:
    """Notes 16-bit values that use a small part of their range, so that the image is nearly black.

    `image` is grey, 8 bits; `stored` begins the sentence.
    """
    brightest = image.getextrema()[1]
    if isinstance(brightest, int) and brightest < NEARLY_BLACK:
        note(
            f"{stored} values that are all below 8,192 of 65,535, and comes out nearly black; scale the values of "
            "such images to the whole range."
        )


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
