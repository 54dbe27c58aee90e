"""Small pictures of coloured shapes, with questions. A split and an index always give the same picture."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

Split = Literal["train", "held-out", "test"]
"""Scenes to train on, to tune the training on, and to test on."""

Kind = Literal["presence", "color", "shape", "count"]
"""Subject of a question."""

KINDS: tuple[Kind, ...] = ("presence", "color", "shape", "count")

COLORS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (128, 64, 20),
    "gray": (128, 128, 128),
    "green": (0, 150, 0),
    "red": (255, 0, 0),
    "teal": (0, 160, 160),
    "yellow": (255, 225, 0),
}
"""Names and RGB of easy-vqa's colours; each shape varies its colour a little."""
SHAPES = ("circle", "cross", "rectangle", "triangle")
NUMBERS = ("zero", "one", "two", "three", "four")

SIDE_PX = 64
CELL_PX = SIDE_PX // 2
"""Side of a quarter of the picture. A quarter holds at most one shape, so no shape covers another."""
SUPERSAMPLING = 4
SMALLEST_RADIUS_PX, LARGEST_RADIUS_PX = 7.5, 13.5
LARGEST_TURN_DEGREES = 8.0
COLOR_SPREAD = 18
DARKEST_BACKGROUND = 215
REPEATS = 0.35
"""Share of shapes that repeat the form of the previous shape, so that there is something to count."""


@dataclass(frozen=True)
class Shape:
    """One shape of a scene."""

    form: str
    """One of SHAPES."""
    color: str
    """One of COLORS."""
    outline: tuple[tuple[float, float], ...]
    """Corners in pixels, x to the right and y downwards."""
    rgb: tuple[int, int, int]
    """Colour in the picture."""


@dataclass(frozen=True)
class Scene:
    """The content of a picture."""

    shapes: tuple[Shape, ...]
    """One to four."""
    background: tuple[int, int, int]
    """RGB, light."""


@dataclass(frozen=True)
class Question:
    """A question about a scene and its right answer."""

    text: str
    """In lower case, as in easy-vqa."""
    answer: str
    """One word."""
    kind: Kind
    """Subject of the question."""


def make_scene(split: Split, index: int) -> Scene:
    """Scene number `index` of `split`."""
    rng = random.Random(f"scene {split} {index}")  # noqa: S311  (not for secrets)
    quarters = rng.sample([(0, 0), (0, 1), (1, 0), (1, 1)], rng.randint(1, 4))
    shapes: list[Shape] = []
    for column, row in quarters:
        form = shapes[-1].form if shapes and rng.random() < REPEATS else rng.choice(SHAPES)
        color = rng.choice(sorted(COLORS))
        radius = rng.uniform(SMALLEST_RADIUS_PX, LARGEST_RADIUS_PX)
        slack = CELL_PX / 2 - radius - 1
        x = (column + 0.5) * CELL_PX + rng.uniform(-slack, slack)
        y = (row + 0.5) * CELL_PX + rng.uniform(-slack, slack)
        corners = outline(form, x, y, radius, rng)
        red, green, blue = (part + rng.randint(-COLOR_SPREAD, COLOR_SPREAD) for part in COLORS[color])
        shapes.append(Shape(form, color, corners, (in_range(red), in_range(green), in_range(blue))))
    red, green, blue = (rng.randint(DARKEST_BACKGROUND, 255) for _ in range(3))
    return Scene(tuple(shapes), (red, green, blue))


def in_range(part: int) -> int:
    """The nearest value from 0 to 255."""
    return min(255, max(0, part))


def outline(form: str, x: float, y: float, radius: float, rng: random.Random) -> tuple[tuple[float, float], ...]:
    """Corners of a form inside the circle around (x, y), turned by a few degrees."""
    turn = math.radians(rng.uniform(-LARGEST_TURN_DEGREES, LARGEST_TURN_DEGREES))
    if form == "rectangle":
        half = math.radians(rng.uniform(25, 65))
        polar = [(1.0, angle) for angle in (half, math.pi - half, math.pi + half, -half)]
    elif form == "triangle":
        polar = [(1.0, math.radians(degrees)) for degrees in (-90, 30, 150)]
    elif form == "cross":
        arm = math.radians(rng.uniform(15, 21))
        inner = math.sqrt(2) * math.sin(arm)
        polar = []
        for quarter in range(4):
            axis = quarter * math.pi / 2
            polar += [(1.0, axis - arm), (1.0, axis + arm), (inner, axis + math.pi / 4)]
    else:
        polar = [(1.0, 2 * math.pi * step / 48) for step in range(48)]
    return tuple((x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn)) for r, a in polar)


def draw(scene: Scene) -> Image.Image:
    """The scene's picture, RGB, 64 x 64 pixels, with smooth edges."""
    large = Image.new("RGB", (SIDE_PX * SUPERSAMPLING, SIDE_PX * SUPERSAMPLING), scene.background)
    pen = ImageDraw.Draw(large)
    for shape in scene.shapes:
        pen.polygon([(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in shape.outline], fill=shape.rgb)
    return large.reduce(SUPERSAMPLING)


def ask(split: Split, index: int) -> list[Question]:
    """Four to six questions about scene number `index` of `split`, in random order.

    Two questions ask for presence, one with the answer yes and one with no. For the absent shape, the picture has its
    color or its form; if possible, in more than half of the scenes it has both, on different shapes.
    """
    scene = make_scene(split, index)
    rng = random.Random(f"questions {split} {index}")  # noqa: S311
    present = rng.choice(scene.shapes)
    questions = [presence(present.color, present.form, "yes"), presence(*absent(scene, rng), "no")]
    forms = [shape.form for shape in scene.shapes]
    colors = [shape.color for shape in scene.shapes]
    if single := [shape for shape in scene.shapes if forms.count(shape.form) == 1]:
        shape = rng.choice(single)
        questions.append(Question(f"what color is the {shape.form}?", shape.color, "color"))
    if single := [shape for shape in scene.shapes if colors.count(shape.color) == 1]:
        shape = rng.choice(single)
        questions.append(Question(f"what is the {shape.color} shape?", shape.form, "shape"))
    questions.append(Question("how many shapes are there?", NUMBERS[len(scene.shapes)], "count"))
    number = rng.choice(sorted({forms.count(form) for form in SHAPES}))
    form = rng.choice([form for form in SHAPES if forms.count(form) == number])
    questions.append(Question(f"how many {plural(form)} are there?", NUMBERS[number], "count"))
    rng.shuffle(questions)
    return questions


def presence(color: str, form: str, answer: str) -> Question:
    """The question whether there is a shape of that colour and form."""
    return Question(f"is there a {color} {form}?", answer, "presence")


def absent(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Colour and form of a shape that is not in the scene."""
    there = {(shape.color, shape.form) for shape in scene.shapes}
    colors, forms = sorted({color for color, _ in there}), sorted({form for _, form in there})
    crossed = [(color, form) for color in colors for form in forms if (color, form) not in there]
    if crossed and rng.random() < 0.5:
        return rng.choice(crossed)
    near = [(color, form) for color in colors for form in SHAPES if (color, form) not in there]
    near += [(color, form) for color in sorted(COLORS) for form in forms if (color, form) not in there]
    return rng.choice(near)


def plural(form: str) -> str:
    """The plural of a form's name."""
    return f"{form}es" if form.endswith("s") else f"{form}s"
