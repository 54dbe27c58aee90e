"""Decoding is safe and within limits, pixels are upright and RGB, and paths stay in their folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from midsight.errors import SampleError
from midsight.samples.images import decode_image, image_id, joint_image_id, resolve_image_path

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def picture(width: int = 20, height: int = 12) -> Image.Image:
    """Four quarters of different colours, so that every turn and flip shows."""
    image = Image.new("RGB", (width, height), (250, 10, 10))
    image.paste((10, 250, 10), (width // 2, 0, width, height // 2))
    image.paste((10, 10, 250), (0, height // 2, width // 2, height))
    image.paste((240, 240, 240), (width // 2, height // 2, width, height))
    return image


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank_png(width: int, height: int) -> bytes:
    """A valid black 1-bit PNG of any size; a large one is a decompression bomb."""
    deflate = zlib.compressobj(1)
    rows_at_once = 500
    rows = bytes((1 + -(-width // 8)) * rows_at_once)
    assert height % rows_at_once == 0
    data = b"".join([deflate.compress(rows) for _ in range(height // rows_at_once)]) + deflate.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("image_format", FORMATS)
def test_each_format_decodes_to_the_pixels_pillow_reads(tmp_path, image_format):
    data = encoded(picture(), image_format)
    expected = pixels(Image.open(io.BytesIO(data)).convert("RGB"))
    path = tmp_path / "named-wrongly.txt"
    path.write_bytes(data)
    np.testing.assert_array_equal(pixels(decode_image(path)), expected)
    np.testing.assert_array_equal(pixels(decode_image(data)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_applies_it(image_format, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(picture(), image_format, exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode_image(data)
    assert decoded.size == ((12, 20) if orientation >= 5 else (20, 12))
    np.testing.assert_array_equal(pixels(decoded), pixels(expected))
    assert ExifTags.Base.Orientation not in decoded.getexif(), "a second reader would turn it again"


def test_an_image_with_unreadable_exif_is_decoded():
    decoded = decode_image(encoded(picture(), "PNG", exif=b"Exif\0\0 no such thing"))
    np.testing.assert_array_equal(pixels(decoded), pixels(picture()))


def damaged_exif() -> bytes:
    """Orientation 6, and a text tag whose data lie outside of the block."""
    entries = struct.pack("<HHII", 0x010E, 2, 40, 4000) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def test_damaged_exif_is_an_error_only_if_warnings_are_errors():
    """Pillow 13 reads the orientation that is not damaged; Pillow 12 reads nothing."""
    reads_a_part = int(PIL.__version__.partition(".")[0]) >= 13
    data = encoded(picture(), "PNG", exif=damaged_exif())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(data).size == ((12, 20) if reads_a_part else (20, 12))
    with pytest.raises(SampleError, match="image in memory cannot be decoded"):
        decode_image(data)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is a pipe, socket or device"),
        (lambda path: path.symlink_to("/dev/zero"), "is a pipe, socket or device"),
        (lambda path: path.symlink_to(path), "cannot be read"),
        (lambda path: path.write_bytes(b""), r"is empty \(0 bytes\)"),
        (lambda path: path.write_text("<html>404 Not Found</html>"), "contains no PNG, JPEG"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "cannot be decoded"),
        (lambda path: path.write_bytes(encoded(picture(200, 200), "JPEG")[:-400]), "cannot be decoded: .*truncated"),
        (lambda path: path.write_bytes(encoded(picture(200, 200))[:-100]), "cannot be decoded: .*truncated"),
        (lambda path: path.write_bytes(encoded(picture(), "BMP")[:-100]), "cannot be decoded: .*truncated"),
        (lambda path: path.write_bytes(encoded(picture()) + bytes(20_000)), "more than 10,000 bytes"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_by_name_and_reason(tmp_path, write, reason):
    path = tmp_path / "scene.png"
    write(path)
    with pytest.raises(SampleError, match=reason) as refusal:
        decode_image(path, max_bytes=10_000)
    message = str(refusal.value)
    assert str(path) in message
    assert message.endswith(".")
    assert "\n" not in message


def test_an_impossible_path_is_refused():
    with pytest.raises(SampleError, match="cannot be read"):
        decode_image(Path("a\0b.png"))
    with pytest.raises(SampleError, match="cannot be read: File name too long") as refusal:
        decode_image(Path("a" * 10_000))
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_pixel_limit_holds_for_every_format(image_format):
    data = encoded(picture(20, 20), image_format)
    assert decode_image(data, max_pixels=400).size == (20, 20)
    with pytest.raises(SampleError, match=r"20 x 20 pixels; at most 399"):
        decode_image(data, max_pixels=399)


def test_the_limits_hold_for_images_in_memory():
    with pytest.raises(SampleError, match="The image in memory is 20 x 12 pixels"):
        decode_image(picture(), max_pixels=200)
    with pytest.raises(SampleError, match="more than 10 bytes"):
        decode_image(encoded(picture()), max_bytes=10)
    with pytest.raises(SampleError, match="each side must have 1 to 65,535"):
        decode_image(Image.new("1", (65_536, 1)))
    with pytest.raises(SampleError, match="each side must have 1 to 65,535"):
        decode_image(Image.new("1", (0, 5)))


def test_a_decompression_bomb_is_refused_quickly_and_in_little_memory(tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(blank_png(40_000, 40_000))
    assert bomb.stat().st_size < 3_000_000
    program = """
import resource, sys, time
from pathlib import Path
from midsight.errors import SampleError
from midsight.samples.images import decode_image
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
try:
    decode_image(Path(sys.argv[1]))
except SampleError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.perf_counter() - start)
"""
    output = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(bomb)], capture_output=True, text=True, check=True
    ).stdout
    message, numbers = output.strip().splitlines()
    kib, seconds = map(float, numbers.split())
    assert "40000 x 40000 pixels; at most 100,000,000" in message
    assert kib < 30_000
    assert seconds < 1


def test_a_jpeg_that_claims_absurd_dimensions_is_refused_quickly():
    data = bytearray(encoded(picture(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_500, 65_500)
    start = time.perf_counter()
    with pytest.raises(SampleError, match="65500 x 65500 pixels"):
        decode_image(bytes(data))
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP"])
def test_pillows_global_size_limit_is_not_used(monkeypatch, image_format):
    data = encoded(picture(), image_format)
    for limit in (10, 150):  # Pillow itself would raise, then warn
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert decode_image(data).size == (20, 12)


def grey_and_see_through() -> dict[str, Image.Image]:
    colours = Image.new("RGB", (4, 4), (30, 60, 90))
    palette = colours.quantize(4)
    see_through = palette.copy()
    see_through.info["transparency"] = bytes([0, 128, 255, 255])
    one_colour = palette.copy()
    one_colour.info["transparency"] = 0
    with_alpha = colours.copy()
    with_alpha.putalpha(0)
    return {"RGBA": with_alpha, "P": palette, "P, alpha bytes": see_through, "P, one colour": one_colour}


@pytest.mark.parametrize("kind", grey_and_see_through())
def test_transparency_is_dropped_and_the_colour_under_it_shows(kind):
    image = grey_and_see_through()[kind]
    for source in (image, encoded(image)):
        assert (pixels(decode_image(source)) == [30, 60, 90]).all()


def test_grey_with_alpha_black_and_white_and_cmyk():
    assert (pixels(decode_image(Image.new("LA", (2, 2), (70, 0)))) == 70).all()
    assert (pixels(decode_image(Image.new("1", (2, 2), 1))) == 255).all()
    cmyk = encoded(Image.new("CMYK", (2, 2), (255, 0, 0, 0)), "TIFF")
    assert (pixels(decode_image(cmyk)) == [0, 255, 255]).all()


def test_grey_of_16_bits_is_scaled_and_not_clipped():
    grey = Image.fromarray(np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16))
    assert grey.mode == "I;16"
    big_endian_tiff = Image.frombytes("I;16B", (3, 2), np.asarray(grey).astype(">u2").tobytes())
    for source in (grey, encoded(grey), encoded(grey, "TIFF"), big_endian_tiff):
        assert pixels(decode_image(source))[..., 0].tolist() == [[0, 0, 1], [128, 254, 255]]


@pytest.mark.parametrize(("mode", "numbers"), [("I", "32-bit integers"), ("F", "floats")])
def test_numbers_without_a_known_white_are_refused(mode, numbers):
    image = Image.new(mode, (2, 2), 1)
    for source in (image, encoded(image, "TIFF")):
        with pytest.raises(SampleError, match=f"stores {numbers}"):
            decode_image(source)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "TIFF"])
def test_the_first_of_several_frames_is_decoded(image_format):
    first = Image.new("RGB", (8, 8), (200, 0, 0))
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    frames = [Image.new("RGB", (8, 8), (0, 0, 200))]
    data = encoded(first, image_format, save_all=True, append_images=frames, **lossless)
    assert (pixels(decode_image(data)) == [200, 0, 0]).all()


def test_an_image_in_memory_is_not_changed():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.open(io.BytesIO(encoded(picture().quantize(8), exif=exif, transparency=bytes(8))))
    info = dict(image.info)
    decoded = decode_image(image)
    assert decoded.size == (12, 20)
    assert (image.size, image.mode, image.info) == ((20, 12), "P", info)
    plain = picture()
    decode_image(plain).paste((0, 0, 0), (0, 0, 20, 12))
    np.testing.assert_array_equal(pixels(plain), pixels(picture()))


def test_decoding_in_threads_does_not_change_the_warning_filters():
    data = encoded(grey_and_see_through()["P, alpha bytes"])
    filters, failures = list(warnings.filters), []

    def decode_many() -> None:
        try:
            for _ in range(50):
                assert (pixels(decode_image(data)) == [30, 60, 90]).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=decode_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert warnings.filters == filters


ENCODED = [encoded(picture(), image_format) for image_format in FORMATS]


@given(
    st.sampled_from(ENCODED),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), max_size=4),
    st.integers(0, 3000),
)
def test_damaged_data_give_an_rgb_image_or_a_sample_error(data, changes, length):
    damaged = bytearray(data)
    for position, replacement in changes:
        damaged[position % len(damaged) : position % len(damaged) + len(replacement)] = replacement
    with contextlib.suppress(SampleError):
        assert decode_image(bytes(damaged[:length]), max_pixels=1_000_000).mode == "RGB"


def test_image_id_is_the_hash_of_size_and_pixels():
    image = picture()
    assert image_id(image) == hashlib.sha256(b"20x12:" + image.tobytes()).hexdigest()
    assert image_id(decode_image(encoded(image))) == image_id(decode_image(encoded(image, "TIFF")))
    black = [Image.new("RGB", size) for size in ((2, 3), (3, 2))]
    first, second = (image_id(image) for image in black)
    assert first != second
    assert joint_image_id([first, second]) == hashlib.sha256((first + second).encode()).hexdigest()
    assert joint_image_id([first, second]) != joint_image_id([second, first])
    assert joint_image_id([first]) == first


@pytest.fixture
def root(tmp_path) -> Path:
    """An image folder with a file, beside a folder that must not be read."""
    root = tmp_path / "images"
    (root / "day").mkdir(parents=True)
    (root / "day" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "images-secret").mkdir()
    (tmp_path / "images-secret" / "b.png").write_bytes(encoded(picture()))
    (root / "inside.png").symlink_to(root / "day" / "a.png")
    (root / "outside.png").symlink_to(tmp_path / "images-secret" / "b.png")
    (root / "folder").symlink_to(tmp_path / "images-secret")
    (root / "loop.png").symlink_to(root / "loop.png")
    return root


def test_paths_inside_the_root_are_resolved(root):
    target = (root / "day" / "a.png").resolve()
    for reference in ("day/a.png", "./day/../day/a.png", str(target), "inside.png"):
        assert resolve_image_path(reference, root) == target
    assert resolve_image_path("not there: 12:30.png", root) == root.resolve() / "not there: 12:30.png"


def test_a_relative_root_works_too(root, monkeypatch):
    monkeypatch.chdir(root)
    assert resolve_image_path("day/a.png", Path()) == (root / "day" / "a.png").resolve()


@pytest.mark.parametrize(
    "reference", ["../images-secret/b.png", "/etc/passwd", "day/../../x.png", "folder/../b.png", ".."]
)
def test_paths_outside_the_root_are_refused(root, reference):
    with pytest.raises(SampleError, match="lies outside the image folder") as refusal:
        resolve_image_path(reference, root)
    assert reference in str(refusal.value)


def test_absolute_paths_of_a_sibling_with_the_same_beginning_are_refused(root):
    with pytest.raises(SampleError, match="lies outside"):
        resolve_image_path(f"{root}-secret/b.png", root)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("", "the image path '' is blank"),
        (" \t", r"the image path ' \\t' is blank"),
        ("http://example.org/a.png", "is a URL"),
        ("HTTPS://example.org/a.png", "is a URL"),
        ("file:///etc/my%20file", "is a file: address; write it as a path: '/etc/my file'"),
        ("file:/etc/passwd", "is a file: address; write it as a path: '/etc/passwd'"),
        ("data:image/png;base64," + "A" * 5000, "is a data URI, but not of an image in base64"),
        ("ftp://host/a.png", "is a URL"),
        ("s3://bucket/a.png", "is in a bucket; name the folder there"),
        ("a\0b.png", "is not a usable path"),
        ("\ud800.png", "is not a usable path"),
    ],
)
def test_references_that_cannot_be_files_are_refused(root, reference, reason):
    with pytest.raises(SampleError, match=reason) as refusal:
        resolve_image_path(reference, root)
    assert len(str(refusal.value)) < 300


def test_a_loop_of_symlinks_is_refused_at_the_latest_when_it_is_read(root):
    with pytest.raises(SampleError):
        decode_image(resolve_image_path("loop.png", root))
