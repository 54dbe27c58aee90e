"""Shares, intervals and the page of answers."""

import re

import pytest

from midsight.demo.score import Share, by_kind, is_right
from midsight.demo.sheet import contact_sheet

ROWS = [
    {"image": "a.png", "question": "is it <b>?", "kind": "presence", "answer": " yes", "reference_answers": ["yes"]},
    {"image": "a.png", "question": "how many?", "kind": "count", "answer": "<two>", "reference_answers": ["one"]},
    {"image": "b.png", "question": "is it?", "kind": "presence", "answer": "no", "reference_answers": ["yes"]},
]


def test_wilson_intervals_are_those_of_the_literature():
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert Share(15, 148).interval == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert Share(0, 20).interval == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_answers_are_counted_by_kind_and_white_space_is_ignored():
    assert is_right(" yes\n", ["yes"])
    assert not is_right("yes.", ["yes"])
    shares = by_kind(ROWS)
    assert list(shares) == ["count", "presence", "all"]
    assert (shares["presence"], shares["count"], shares["all"]) == (Share(1, 2), Share(0, 1), Share(1, 3))


def test_the_page_is_self_contained_and_shows_answers_as_text(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    page = contact_sheet(ROWS, tmp_path, by_kind(ROWS), intro="<intro>", pictures=1)
    assert page.count("<img") == 1
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|<script", page)
    assert "&lt;two&gt;" in page
    assert "&lt;intro&gt;" in page
    assert "(right: one)" in page
    assert page.count('<li class="right">') == page.count('<li class="wrong">') == 1
