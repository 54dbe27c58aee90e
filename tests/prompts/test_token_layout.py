import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midsight.errors import SampleError
from midsight.prompts.token_layout import Span, TokenLayout, runs_of

IMAGE = 9
rows = st.lists(st.sampled_from([1, 2, IMAGE]), min_size=1, max_size=60)


@given(rows)
def test_runs_cover_exactly_the_image_tokens_and_never_touch(row):
    runs = runs_of(row, IMAGE)
    covered = [i for run in runs for i in range(run.start, run.stop)]
    assert covered == [i for i, token in enumerate(row) if token == IMAGE]
    assert all(a.stop < b.start for a, b in itertools.pairwise(runs))


@given(rows, st.integers(0, 50))
def test_a_layout_finds_the_same_tokens_after_padding(row, offset):
    layout = TokenLayout(Span(0, len(row)), runs_of(row, IMAGE), Span(0, 1))
    padded = [0] * offset + row
    moved = layout.shifted(offset)
    assert [padded[i] for i in moved.image_indices()] == [row[i] for i in layout.image_indices()]
    assert moved.image_tokens == layout.image_tokens == row.count(IMAGE)
    assert padded[moved.query_token] == row[-1]
    assert moved.query_token == len(padded) - 1
    if IMAGE in row:
        last = len(row) - 1 - row[::-1].index(IMAGE)
        assert layout.vision_token == last
        assert moved.vision_token == last + offset == layout.image_indices()[-1] + offset


def test_the_vision_token_is_the_last_token_of_the_last_image():
    layout = TokenLayout(Span(0, 12), (Span(1, 4), Span(6, 9)), Span(9, 11))
    assert layout.vision_token == 8
    assert layout.image_indices().dtype == np.int64


def test_a_prompt_without_image_has_no_vision_token():
    with pytest.raises(SampleError, match="no image token"):
        _ = TokenLayout(Span(0, 3), (), Span(0, 1)).vision_token


@pytest.mark.parametrize(
    ("prompt", "image", "question"),
    [
        (Span(0, 0), (), Span(0, 0)),
        (Span(2, 9), (Span(1, 3),), Span(4, 5)),
        (Span(0, 9), (Span(4, 6), Span(5, 7)), Span(7, 8)),
        (Span(0, 9), (Span(5, 7), Span(1, 3)), Span(7, 8)),
        (Span(0, 9), (), Span(8, 10)),
    ],
)
def test_layouts_that_contradict_themselves_are_refused(prompt, image, question):
    with pytest.raises(ValueError, match="span"):
        TokenLayout(prompt, image, question)


def test_a_span_runs_forward():
    with pytest.raises(ValueError, match="is not a range"):
        Span(3, 2)
