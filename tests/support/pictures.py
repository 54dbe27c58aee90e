"""Images of every size and kind that the parity tests run on, drawn by us."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]


def picture(size: Size, seed: int) -> Image.Image:
    """Soft blotches of colour with some fine grain, RGB."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = rng.integers(0, 256, (max(2, height // 60), max(2, width // 60), 3), dtype=np.uint8)
    base = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray((base + rng.integers(-12, 13, base.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_exif(size: Size, seed: int) -> bytes:
    """A JPEG whose EXIF orientation says that it has to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(picture(size, seed), "JPEG", quality=90, exif=exif)


def with_alpha(size: Size, seed: int) -> bytes:
    """An RGBA PNG, half transparent on its left."""
    image = picture(size, seed)
    alpha = Image.new("L", size, 255)
    alpha.paste(60, (0, 0, size[0] // 2, size[1]))
    image.putalpha(alpha)
    return encoded(image)


@dataclass(frozen=True)
class Case:
    """One image-question pair."""

    name: str
    image: bytes
    question: str
    slow: bool = False


CASES = (
    Case("tiny", encoded(picture((20, 14), 1)), "What is this?"),
    Case("fills one crop", encoded(picture((448, 448), 2)), "Is there a red circle in the image?"),
    Case("fills two crops", encoded(picture((896, 448), 3)), "How many shapes are there? Answer with a number."),
    Case("vga", encoded(picture((640, 480), 4)), "a"),
    Case("wide", encoded(picture((1400, 200), 5)), "What colour is the largest shape on the left of the picture?"),
    Case("tall", encoded(picture((150, 700), 6)), "Describe it."),
    Case("gray", encoded(picture((300, 333), 7).convert("L")), "Is it bright or dark? " * 12),
    Case("rgba", with_alpha((200, 260), 8), "Yes or no?"),
    Case("palette", encoded(picture((250, 120), 9).quantize(32), "GIF"), "Which of the colours is it: blue or green?"),
    Case("exif", rotated_by_exif((500, 240), 10), "Which way is up?"),
    Case("cmyk", encoded(picture((90, 90), 11).convert("CMYK"), "JPEG"), "Ist das ein Öl­gemälde? 是吗?"),
    Case("square of odd size", encoded(picture((600, 605), 12)), "Is there no triangle?"),
    Case("nine sub-crops", encoded(picture((1344, 1008), 13)), "What stands in the middle?", slow=True),
    Case("over 36 crops", encoded(picture((3000, 2900), 14), "JPEG"), "What is the smallest thing here?", slow=True),
)


def write_csv(folder: Path, sizes: Sequence[Size], rows: Sequence[str]) -> Path:
    """Images 0.png, 1.png, ... of the sizes, and data.csv with `id,image,question` rows beside them; its path."""
    for seed, size in enumerate(sizes):
        (folder / f"{seed}.png").write_bytes(encoded(picture(size, seed)))
    (folder / "data.csv").write_text("\n".join(["id,image,question", *rows]))
    return folder / "data.csv"
