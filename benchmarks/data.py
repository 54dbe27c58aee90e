"""Images with questions: one or ten questions per image, one or several image sizes.

Every procedure gets the same.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MIXED_SIZES_PX = (
    (448, 448),
    (300, 300),
    (448, 1340),
    (640, 480),
    (1280, 720),
    (1344, 1344),
    (1920, 1080),
    (2240, 1792),
)
"""1, 1, 3, 4, 6, 9, 15 and 20 sub-crops; the prompt of the last image exceeds the longrope threshold."""
DRAWN_PX = (640, 480)
QUESTIONS_PER_IMAGE = 10


@dataclass(frozen=True)
class Row:
    """One sample of a benchmark."""

    image: str
    """Path of a PNG file."""
    question: str
    """Question about the image."""
    new_tokens: int
    """Number of tokens in the answer, including the stop token; 0 for no answer."""


def stop_length(question: str, max_new_tokens: int) -> int:
    """Number of tokens in the answer to a question; the same question always gets the same number.

    Lengths follow an exponential distribution of mean `max_new_tokens` / 2, cut at `max_new_tokens`.
    So most answers are short, and one in seven is cut.
    """
    if max_new_tokens == 0:
        return 0
    digest = hashlib.sha256(question.encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return min(max_new_tokens, max(1, math.ceil(-max_new_tokens / 2 * math.log1p(-uniform))))


def draw(size_px: tuple[int, int], seed: int) -> Image.Image:
    """An RGB image of smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size_px, Image.Resampling.BICUBIC)


def write_drawn(folder: Path, sizes_px: Sequence[tuple[int, int]]) -> list[str]:
    """Writes an image of each size as a PNG file and returns the paths."""
    paths = [folder / f"{number}.png" for number in range(len(sizes_px))]
    for number, (path, size_px) in enumerate(zip(paths, sizes_px, strict=True)):
        draw(size_px, number).save(path)
    return [str(path) for path in paths]


def ask(images: Sequence[str], per_image: int, max_new_tokens: int) -> list[Row]:
    """Asks `per_image` questions about each image."""
    questions = [
        [f"Is there a thing of kind {kind} in picture {number}?" for kind in range(per_image)]
        for number in range(len(images))
    ]
    return [
        Row(image, question, stop_length(question, max_new_tokens))
        for image, asked in zip(images, questions, strict=True)
        for question in asked
    ]


def distinct(folder: Path, count: int, max_new_tokens: int) -> list[Row]:
    """One question per image; images of 640 x 480 pixels."""
    return ask(write_drawn(folder, [DRAWN_PX] * count), 1, max_new_tokens)


def ten_drawn(folder: Path, count: int, max_new_tokens: int) -> list[Row]:
    """Ten questions per image; images of 640 x 480 pixels."""
    images = write_drawn(folder, [DRAWN_PX] * -(-count // QUESTIONS_PER_IMAGE))
    return ask(images, QUESTIONS_PER_IMAGE, max_new_tokens)[:count]


def ten_easy_vqa(_folder: Path, count: int, max_new_tokens: int) -> list[Row]:
    """Ten questions per image of easy-vqa; images of 64 x 64 pixels, unchanged."""
    import easy_vqa  # the report of a GPU does without it

    questions, _, image_ids = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    by_image: dict[int, list[str]] = {}
    for question, image_id in zip(questions, image_ids, strict=True):
        by_image.setdefault(image_id, []).append(question)
    asked = {image_id: texts for image_id, texts in by_image.items() if len(texts) >= QUESTIONS_PER_IMAGE}
    rows = [
        Row(paths[image_id], text, stop_length(text, max_new_tokens))
        for image_id, texts in asked.items()
        for text in texts[:QUESTIONS_PER_IMAGE]
    ]
    return rows[:count]


def mixed_sizes(folder: Path, count: int, max_new_tokens: int) -> list[Row]:
    """One question per image; images of eight sizes in turn."""
    sizes_px = [MIXED_SIZES_PX[number % len(MIXED_SIZES_PX)] for number in range(count)]
    return ask(write_drawn(folder, sizes_px), 1, max_new_tokens)


def cross_section(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` of the rows, at equal distances in the order of image size and answer length: with the means of all."""
    sizes_px: dict[str, tuple[int, int]] = {}
    for path in {row.image for row in rows}:
        with Image.open(path) as image:
            sizes_px[path] = image.size
    ordered = sorted(rows, key=lambda row: (sizes_px[row.image], row.new_tokens))
    return [ordered[(2 * number + 1) * len(rows) // (2 * count)] for number in range(count)]


def write_dataset(rows: Sequence[Row], path: Path) -> Path:
    """Writes the rows as a JSONL file for midsight, with image paths relative to the images' folder."""
    lines = [json.dumps({"image": Path(row.image).name, "question": row.question}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
