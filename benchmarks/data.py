"""Images with questions: distinct, shared by ten questions each, and of mixed sizes; the same for every procedure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import easy_vqa
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
"""1, 1, 3, 4, 6, 9, 15 and 20 sub-crops; the last is longer than the longrope border."""
DRAWN_PX = (640, 480)
QUESTIONS_PER_IMAGE = 10


@dataclass(frozen=True)
class Row:
    """A sample of a benchmark."""

    image: str
    """Path of a PNG file."""
    question: str
    """What is asked about it."""
    new_tokens: int
    """Tokens of its answer, the stop token among them; 0 for none."""


def stop_length(question: str, longest: int) -> int:
    """Tokens after which the answer to a question ends: fixed for the question, drawn for the questions.

    The exponential distribution of mean `longest` / 2, cut at `longest`: most answers are short, one in seven is cut.
    """
    if longest == 0:
        return 0
    digest = hashlib.sha256(question.encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return min(longest, max(1, math.ceil(-longest / 2 * math.log1p(-uniform))))


def draw(size_px: tuple[int, int], seed: int) -> Image.Image:
    """Smooth noise of that size, RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size_px, Image.Resampling.BICUBIC)


def write_drawn(folder: Path, sizes_px: Sequence[tuple[int, int]]) -> list[str]:
    """A drawn image of each size, as PNG files; their paths."""
    paths = [folder / f"{number}.png" for number in range(len(sizes_px))]
    for number, (path, size_px) in enumerate(zip(paths, sizes_px, strict=True)):
        draw(size_px, number).save(path)
    return [str(path) for path in paths]


def ask(images: Sequence[str], per_image: int, longest: int) -> list[Row]:
    """So many questions on each image."""
    questions = [
        [f"Is there a thing of kind {kind} in picture {number}?" for kind in range(per_image)]
        for number in range(len(images))
    ]
    return [
        Row(image, question, stop_length(question, longest))
        for image, asked in zip(images, questions, strict=True)
        for question in asked
    ]


def distinct(folder: Path, count: int, longest: int) -> list[Row]:
    """One question on each image of 640 x 480."""
    return ask(write_drawn(folder, [DRAWN_PX] * count), 1, longest)


def ten_drawn(folder: Path, count: int, longest: int) -> list[Row]:
    """Ten questions on each image of 640 x 480."""
    images = write_drawn(folder, [DRAWN_PX] * -(-count // QUESTIONS_PER_IMAGE))
    return ask(images, QUESTIONS_PER_IMAGE, longest)[:count]


def ten_easy_vqa(_folder: Path, count: int, longest: int) -> list[Row]:
    """Ten questions on each of easy-vqa's images, as they come with the package: 64 x 64 pixels."""
    questions, _, image_ids = easy_vqa.get_test_questions()
    paths = easy_vqa.get_test_image_paths()
    by_image: dict[int, list[str]] = {}
    for question, image_id in zip(questions, image_ids, strict=True):
        by_image.setdefault(image_id, []).append(question)
    asked = {image_id: texts for image_id, texts in by_image.items() if len(texts) >= QUESTIONS_PER_IMAGE}
    rows = [
        Row(paths[image_id], text, stop_length(text, longest))
        for image_id, texts in asked.items()
        for text in texts[:QUESTIONS_PER_IMAGE]
    ]
    return rows[:count]


def mixed_sizes(folder: Path, count: int, longest: int) -> list[Row]:
    """One question on each image, images of eight sizes in turn."""
    sizes_px = [MIXED_SIZES_PX[number % len(MIXED_SIZES_PX)] for number in range(count)]
    return ask(write_drawn(folder, sizes_px), 1, longest)


def write_dataset(rows: Sequence[Row], path: Path) -> Path:
    """The rows as the JSONL file that midsight reads, image paths from the folder they are in."""
    lines = [json.dumps({"image": Path(row.image).name, "question": row.question}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
