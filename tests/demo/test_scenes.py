"""Scenes and their questions: right answers, balanced, always the same."""

import hashlib
from collections import Counter, defaultdict

import pytest

from midsight.demo.scenes import COLORS, KINDS, NUMBERS, SHAPES, ask, draw, make_scene, plural

ASKED = range(600)


@pytest.mark.parametrize("index", range(20))
def test_answers_are_what_the_scene_shows(index):
    shapes = [(shape.color, shape.form) for shape in make_scene("test", index).shapes]
    forms = [form for _, form in shapes]
    truth = {f"is there a {c} {f}?": "yes" if (c, f) in shapes else "no" for c in COLORS for f in SHAPES}
    truth |= {f"what color is the {form}?": color for color, form in shapes if forms.count(form) == 1}
    truth |= {f"how many {plural(form)} are there?": NUMBERS[forms.count(form)] for form in SHAPES}
    truth["how many shapes are there?"] = NUMBERS[len(shapes)]
    colors = [color for color, _ in shapes]
    truth |= {f"what is the {color} shape?": form for color, form in shapes if colors.count(color) == 1}
    for question in ask("test", index):
        assert truth[question.text] == question.answer


@pytest.mark.parametrize("index", range(8))
def test_every_shape_is_drawn_in_its_color_and_corners_show_the_background(index):
    scene = make_scene("test", index)
    image = draw(scene)
    assert (image.mode, image.size) == ("RGB", (64, 64))
    colors = {rgb for _, rgb in image.getcolors(64 * 64) or []}
    assert {shape.rgb for shape in scene.shapes} <= colors
    corners = {image.getpixel(at) for at in ((0, 0), (63, 0), (0, 63), (63, 63))}
    assert corners == {scene.background}


def test_scenes_are_the_same_on_every_machine():
    described = repr([(make_scene("test", index).shapes[0].color, ask("test", index)) for index in range(50)])
    assert hashlib.sha256(described.encode()).hexdigest()[:16] == "4b7621a8ef122275"


def test_splits_share_no_scene():
    scenes = {split: {draw(make_scene(split, index)).tobytes() for index in range(60)} for split in ("train", "test")}
    assert not scenes["train"] & scenes["test"]


def test_the_question_alone_says_little_about_the_answer():
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    by_kind: dict[str, Counter[str]] = defaultdict(Counter)
    kinds = {}
    for index in ASKED:
        for question in ask("test", index):
            by_text[question.text][question.answer] += 1
            by_kind[question.kind][question.answer] += 1
            kinds[question.text] = question.kind
    assert set(by_kind) == set(KINDS)
    assert by_kind["presence"]["yes"] == by_kind["presence"]["no"]
    for kind, most in {"color": 0.3, "shape": 0.4, "count": 0.45}.items():
        commonest = sum(max(answers.values()) for text, answers in by_text.items() if kinds[text] == kind)
        assert commonest / by_kind[kind].total() < most


def test_for_half_of_the_absent_shapes_color_and_form_are_there_on_different_shapes():
    bound, possible = 0, 0
    for index in ASKED:
        shapes = make_scene("test", index).shapes
        colors, forms = {shape.color for shape in shapes}, {shape.form for shape in shapes}
        if len({(shape.color, shape.form) for shape in shapes}) == len(colors) * len(forms):
            continue
        possible += 1
        absent = next(q for q in ask("test", index) if q.kind == "presence" and q.answer == "no")
        color, form = absent.text.removeprefix("is there a ").rstrip("?").split()
        bound += color in colors and form in forms
    assert 0.45 < bound / possible < 0.7
