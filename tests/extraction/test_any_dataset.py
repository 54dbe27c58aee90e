"""Whatever a dataset is made of, and however it is cut into calls, its numbers are those of every sample alone."""

from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midsight import Record, load
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run
from support.parity import LIMIT, assert_parity, expect
from support.pictures import encoded, picture
from support.reference import Reference, relative_error

THRESHOLD = 560
"""Just above a short question on a small image: questions on one image fall on both sides, and answers cross."""
IMAGES = [encoded(picture(size, seed)) for seed, size in enumerate([(64, 64), (64, 90), (640, 300), (30, 500)])]
QUESTIONS = ["a", "What is this?", "a" * 40, "Is there a red circle in the image? Answer yes or no. " * 3]
NEW_TOKENS = 4


@pytest.fixture(scope="module")
def folder(run_folder):
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal, original_max_position_embeddings=THRESHOLD)


@pytest.fixture(scope="module")
def model_near_threshold(folder):
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def alone(folder):
    """(images, question) -> what transformers gives for it, computed once."""
    reference = Reference(folder, keep=True)

    @cache
    def look_up(images, question):
        shown = [IMAGES[i] for i in images]
        return expect(reference, shown, QUESTIONS[question], new_tokens=NEW_TOKENS, use_cache=False)

    return look_up


samples = st.tuples(st.sampled_from([(0,), (0,), (1,), (2,), (3,), (0, 1)]), st.integers(0, len(QUESTIONS) - 1))


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(samples, min_size=1, max_size=10),
    st.one_of(st.just("auto"), st.integers(1, 10)),
    st.booleans(),
    st.booleans(),
)
def test_any_dataset_in_any_batches_equals_the_full_forwards(
    model_near_threshold, alone, asked, batch_size, share, answers
):
    rows = [
        Sample(f"{n}", n, tuple(IMAGES[i] for i in images), QUESTIONS[question], image=f"{images}")
        for n, (images, question) in enumerate(asked)
    ]
    records = model_near_threshold.extract_many(
        rows,
        layers="all",
        residual=True,
        positions=POSITIONS,
        max_new_tokens=NEW_TOKENS,
        batch_size=batch_size,
        share=share,
        answers=answers,
    )
    assert [record.sample_id for record in records] == [row.sample_id for row in rows]
    for record, one in zip(records, asked, strict=True):
        expected = alone(*one)
        assert isinstance(record, Record), record
        if answers:
            assert_parity(record, expected)
        else:
            assert record.answer is None
            errors = {name: relative_error(record.vectors[name], vector) for name, vector in expected.vectors.items()}
            assert max(errors.values()) <= LIMIT, errors


@pytest.mark.slow
def test_questions_on_one_image_fall_on_both_sides_of_the_threshold(alone):
    lengths = {question: alone((0,), question).prompt_tokens for question in range(len(QUESTIONS))}
    assert min(lengths.values()) + NEW_TOKENS > THRESHOLD - 10
    assert lengths[0] < THRESHOLD < lengths[3]
