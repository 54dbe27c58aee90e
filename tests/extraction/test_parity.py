"""Every vector and every answer against transformers' own forward: one sample, no padding, float32."""

import random

import numpy as np
import pytest

from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from support.parity import EVERYTHING, NEW_TOKENS, Expected, assert_parity, expect, extract_records, rgb, samples_of
from support.pictures import CASES, Case


@pytest.fixture(scope="module")
def expectation(reference):
    """Case -> what transformers gives, computed once."""
    known: dict[str, Expected] = {}

    def compute(case: Case) -> Expected:
        if case.name not in known:
            known[case.name] = expect(reference, [case.image], case.question)
        return known[case.name]

    return compute


QUICK = [case for case in CASES if not case.slow]


@pytest.mark.parametrize(("batch_size", "padding_side"), [(3, "left"), (8, "right")])
def test_quick_cases_equal_the_full_forward(model, expectation, batch_size, padding_side):
    check_in_batches(model, expectation, QUICK, batch_size, padding_side)


@pytest.mark.slow
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 8])
def test_all_cases_equal_the_full_forward(model, expectation, batch_size, padding_side):
    check_in_batches(model, expectation, list(CASES), batch_size, padding_side)


def check_in_batches(model, expectation, cases, batch_size, padding_side):
    """Shuffled anew for each batch size and side, so that neighbours differ."""
    plan = resolve(EVERYTHING, model.loaded)
    samples = samples_of(cases)
    random.Random(f"{batch_size}{padding_side}").shuffle(samples)  # noqa: S311  (no secret)
    by_name = {case.name: case for case in cases}
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        for sample, record in zip(batch, extract_records(model, plan, batch, padding_side=padding_side), strict=True):
            assert record.sample_id == sample.sample_id
            assert_parity(record, expectation(by_name[sample.sample_id]))


def test_answers_of_one_batch_stop_at_different_lengths(model, expectation):
    """Only then does the batch go on without some of its rows."""
    expected = [expectation(case) for case in QUICK]
    lengths = {len(e.answer_token_ids) for e in expected}
    assert len(lengths) >= 3
    assert any(e.answer_token_ids[-1] == 200020 for e in expected)
    assert NEW_TOKENS in lengths


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("past_multiple", [-1, 0, 1])
def test_padded_lengths_around_multiples_of_32(model, reference, past_multiple, padding_side):
    """The longest row has 32 k - 1, 32 k and 32 k + 1 tokens; the others are padded to it."""
    image = CASES[0].image
    one_word = model.loaded.tokenizer(" a", add_special_tokens=False)["input_ids"]
    assert len(one_word) == 1
    base = expect(reference, [image], "a").prompt_tokens
    target = (base // 32 + 2) * 32 + past_multiple
    questions = ["a" + " a" * (target - base), "a", "a a a a a a a"]
    plan = resolve(EVERYTHING, model.loaded)
    samples = [Sample(str(i), i, (image,), question) for i, question in enumerate(questions)]
    records = extract_records(model, plan, samples, padding_side=padding_side)
    assert records[0].prompt_tokens == target
    for record, question in zip(records, questions, strict=True):
        assert_parity(record, expect(reference, [image], question))


def test_several_images_in_one_prompt(model, reference):
    images = [CASES[0].image, CASES[3].image, CASES[1].image]
    expected = expect(reference, images, "Which differs?", system="You see three images.")
    request = Request(
        layers="all", residual=True, positions=POSITIONS, max_new_tokens=NEW_TOKENS, system="You see three images."
    )
    plan = resolve(request, model.loaded)
    neighbour = Sample("other", 1, (CASES[2].image,), "How many?")
    records = extract_records(model, plan, [Sample("three", 0, tuple(images), "Which differs?"), neighbour])
    assert_parity(records[0], expected)


def test_transformers_pixels_equal_its_processor(model, reference):
    case = CASES[8]
    plan = resolve(
        Request(layers="all", positions=POSITIONS, residual=True, pixels="transformers", max_new_tokens=NEW_TOKENS),
        model.loaded,
    )
    record = extract_records(model, plan, samples_of([case]))[0]
    assert_parity(record, expect(reference, [case.image], case.question, pixels="transformers"))


@pytest.mark.parametrize("pixels", ["pil", "transformers"])
def test_pooled_pixels_are_exactly_those_of_the_original_procedure(model, reference, pixels):
    """The processor's tensor [1, crops, 3, 448, 448], averaged over dim 1 until two dims are left."""
    plan = resolve(Request(layers=[0], pixels=pixels, processor_pooled_pixels=True, answers=False), model.loaded)
    cases = [CASES[0], CASES[3], CASES[4]]
    for record, case in zip(extract_records(model, plan, samples_of(cases)), cases, strict=True):
        pooled = reference.inputs([rgb(case.image)], case.question, pixels=pixels)["image_pixel_values"]
        while pooled.dim() > 2:
            pooled = pooled.mean(dim=1)
        assert record.processor_pooled_pixels.shape == (448,)
        assert np.array_equal(record.processor_pooled_pixels, pooled[0].numpy())
