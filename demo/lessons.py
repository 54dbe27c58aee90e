"""Training data of the demo model: pictures with labels, and questions as rows of the token table."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import easy_vqa
import numpy as np
import torch
from network import GRID, IGNORED, TokenTable
from PIL import Image, ImageDraw
from torch import Tensor

from midsight.demo import scenes
from midsight.demo.scenes import COLORS, SHAPES, SIDE_PX, SUPERSAMPLING, Question, Split, ask, draw, make_scene
from midsight.testing.phi4_multimodal import make_tokenizer

USER, END, ASSISTANT = 200021, 200020, 200019
CROP_PX = 448
QUESTION_LENGTH = 18
"""Number of tokens of the longest question with its answer."""
FORM_INDEX = {form: i + 1 for i, form in enumerate(SHAPES)}
COLOR_INDEX = {color: i + 1 for i, color in enumerate(sorted(COLORS))}
COVERED, UNCOVERED = 0.5, 0.125
"""Covered share of an image token from which it is labelled as shape, and up to which it is labelled as background."""
SCENES = 5000
"""Number of our own training scenes."""
HELD_OUT_EASY = 60
"""Number of images at the end of easy-vqa's training half that are kept for tuning."""


def code_digest() -> bytes:
    """SHA-256 of the code that, with the tower's weights, decides the features of a picture."""
    files = (Path(scenes.__file__), Path(__file__), Path(__file__).with_name("network.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).digest()


@dataclass(frozen=True)
class Lesson:
    """A picture, its shapes, and questions about it."""

    source: tuple[str, int]
    """`easy`, `train` or `held-out`, and the picture's number."""
    shapes: tuple[tuple[str, str], ...]
    """Colour and form of each shape; empty if unknown."""
    questions: tuple[Question, ...]
    """Questions with answers."""

    def image(self) -> Image.Image:
        """The picture, RGB."""
        if self.source[0] == "easy":
            with Image.open(easy_image_paths()[self.source[1]]) as image:
                return image.convert("RGB")
        return draw(make_scene(*self.source))  # type: ignore[arg-type]


@cache
def easy_image_paths() -> dict[int, str]:
    """Paths of easy-vqa's training images, by number."""
    return dict(easy_vqa.get_train_image_paths())


def scene_lesson(split: Split, index: int) -> Lesson:
    """The lesson of one of our own scenes."""
    shapes = tuple((shape.color, shape.form) for shape in make_scene(split, index).shapes)
    return Lesson((split, index), shapes, tuple(ask(split, index)))


def easy_kind(answer: str) -> str:
    """Kind of an easy-vqa question, read from its answer."""
    return "color" if answer in COLORS else "shape" if answer in SHAPES else "presence"


@cache
def easy_lessons() -> tuple[Lesson, ...]:
    """The lessons of easy-vqa's training half."""
    by_image: dict[int, list[Question]] = defaultdict(list)
    for text, answer, image in zip(*easy_vqa.get_train_questions(), strict=True):
        by_image[image].append(Question(text, answer, easy_kind(answer)))  # type: ignore[arg-type]
    return tuple(
        Lesson(("easy", image), easy_shape(by_image[image]), tuple(by_image[image])) for image in sorted(by_image)
    )


def draw_questions(lesson: Lesson, number: int, rng: random.Random) -> list[Question]:
    """Draws `number` questions about a picture, with repeats if it has fewer.

    Among easy-vqa's questions about presence, as many name a shape in the picture as name an absent one. The set has
    about four times as many of the second kind.
    """
    present = [question for question in lesson.questions if names_present_shape(question)]
    absent = [question for question in lesson.questions if question.kind == "presence" and question not in present]
    rest = [question for question in lesson.questions if question.kind != "presence"]
    chosen = [*present, *rng.sample(absent, min(len(present), len(absent))), *rest]
    rng.shuffle(chosen)
    return (chosen * number)[:number]


def names_present_shape(question: Question) -> bool:
    """Whether a question about presence names something in the picture, read from its right answer."""
    words = question.text.rstrip("?").split()
    denied = "not" in words or "no" in words
    return question.kind == "presence" and (question.answer == "yes") != denied


def easy_shape(questions: Sequence[Question]) -> tuple[tuple[str, str], ...]:
    """Colour and form of the only shape, read from the answers; empty if they do not give both."""
    found: dict[str, str] = {}
    for names, kind in ((COLORS, "color"), (SHAPES, "shape")):
        for question in questions:
            words = question.text.rstrip("?").split()
            named = [word for word in words if word in names]
            if question.answer in names:
                found[kind] = question.answer
            elif question.kind == "presence" and named:
                if names_present_shape(question):
                    found[kind] = named[0]
            elif question.kind != kind and question.kind != "presence" and named:
                found[kind] = named[0]
    return ((found["color"], found["shape"]),) if len(found) == 2 else ()


def pixels_of(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """Pixels [3, 448, 448] of a square picture as the processor makes them: global crop and only sub-crop are equal.

    With `box` (left, top, right, bottom) only that part.
    """
    large = image.resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR)
    values = np.asarray(large.crop(box) if box else large, dtype=np.float32)
    return torch.from_numpy(values / 127.5 - 1).permute(2, 0, 1)


def window_corner(lesson: Lesson, rng: random.Random) -> tuple[int, int]:
    """Row and column, both even, of the first patch in a window of 16 x 16 patches around one shape."""
    shape = rng.choice(make_scene(*lesson.source).shapes)  # type: ignore[arg-type]
    xs, ys = zip(*shape.outline, strict=True)
    patch = SIDE_PX / (2 * GRID)

    def start(low: float, high: float) -> int:
        latest, earliest = low / patch, high / patch - GRID
        chosen = 2 * round(rng.uniform(min(earliest, latest), latest) / 2)
        return min(max(chosen, 0), GRID)

    return start(min(ys), max(ys)), start(min(xs), max(xs))


def token_labels(lesson: Lesson, image: Image.Image) -> tuple[Tensor, Tensor]:
    """Form and colour [256] in each image token: 0 for background, ignored at edges of shapes."""
    forms = torch.zeros(GRID * GRID, dtype=torch.long)
    colors = torch.zeros(GRID * GRID, dtype=torch.long)
    for (color, form), share in zip(lesson.shapes, shares(lesson, image), strict=True):
        forms[share > UNCOVERED] = IGNORED
        colors[share > UNCOVERED] = IGNORED
        forms[share >= COVERED] = FORM_INDEX[form]
        colors[share >= COVERED] = COLOR_INDEX[color]
    return forms, colors


def shares(lesson: Lesson, image: Image.Image) -> list[Tensor]:
    """For every shape, the covered share of each image token [256]."""
    if lesson.source[0] == "easy":
        pixels = np.asarray(image, dtype=np.int32)
        masks = [(np.abs(pixels - pixels[0, 0]).max(axis=-1) > 60).astype(np.float32)]
    else:
        masks = []
        for shape in make_scene(*lesson.source).shapes:  # type: ignore[arg-type]
            mask = Image.new("L", (SIDE_PX * SUPERSAMPLING, SIDE_PX * SUPERSAMPLING))
            ImageDraw.Draw(mask).polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in shape.outline], fill=255)
            masks.append(np.asarray(mask.reduce(SUPERSAMPLING), dtype=np.float32) / 255)
    cell = SIDE_PX // GRID
    return [torch.from_numpy(mask.reshape(GRID, cell, GRID, cell).mean(axis=(1, 3)).ravel()) for mask in masks]


class Words:
    """Turns texts into rows of the token table."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()
        self.known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Token ids of a text."""
        if text not in self.known:
            self.known[text] = self.tokenizer(text)["input_ids"]
        return self.known[text]

    def ids_in_use(self) -> list[int]:
        """All token ids that occur in training, ascending."""
        used = {USER, END, ASSISTANT}
        lessons = [*easy_lessons(), *(scene_lesson("train", index) for index in range(SCENES))]
        for lesson in lessons:
            for question in lesson.questions:
                used.update(self.ids(question.text), self.ids(question.answer))
        for color in COLORS:
            used.update(i for form in SHAPES for i in self.ids(f" {color} {form}"))
        return sorted(used)

    def piece(self, table: TokenTable, form: str, color: str) -> list[int]:
        """Rows of the words that describe one shape."""
        return [table.index[i] for i in self.ids(f" {color} {form}")]

    def row(self, table: TokenTable, question: Question) -> tuple[list[int], list[int]]:
        """Input rows and targets of a question with its answer, both of length QUESTION_LENGTH."""
        asked = [*self.ids(question.text), END, ASSISTANT]
        answered = [*self.ids(question.answer), END]
        inputs = [table.index[i] for i in (*asked, *answered)][:-1]
        targets = [IGNORED] * (len(asked) - 1) + [table.index[i] for i in answered]
        padding = QUESTION_LENGTH - len(inputs)
        if padding < 0:
            raise ValueError(f"{question.text!r} has more than {QUESTION_LENGTH} tokens with its answer.")
        return inputs + [0] * padding, targets + [IGNORED] * padding
