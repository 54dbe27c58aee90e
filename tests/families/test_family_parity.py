"""Every family's vectors and answers against transformers' own forward: one sample, no padding, float32."""

import random
from dataclasses import replace
from itertools import product

import pytest

from midsight.check.processor import processor_inputs
from midsight.extraction import prefill
from midsight.extraction.calls import plan_whole
from midsight.extraction.prefill import prefill_together
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Failure, Sample
from midsight.taps.tap import POSITIONS
from midsight.testing import check_family
from support.family_reference import FAMILIES
from support.parity import NEW_TOKENS, assert_parity, expect, extract_records, samples_of
from support.pictures import CASES, encoded, picture

pytestmark = pytest.mark.usefixtures("no_halves")
EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=NEW_TOKENS)
USED = [case for case in CASES if not case.slow]


@pytest.fixture(scope="module")
def expected(reference):
    """What transformers gives for every case, by its name."""
    return {case.name: expect(reference, [case.image], case.question) for case in USED}


@pytest.fixture(scope="module")
def all_expected(reference, expected):
    """The same with the large images."""
    large = [case for case in CASES if case.slow]
    return expected | {case.name: expect(reference, [case.image], case.question) for case in large}


SLOW_BATCHES = [(1, "left"), (8, "right"), (12, "left")]


@pytest.mark.parametrize(
    ("batch_size", "padding_side"),
    [(3, "left"), *(pytest.param(*batch, marks=pytest.mark.slow) for batch in SLOW_BATCHES)],
)
def test_batches_of_mixed_sizes_equal_the_full_forward(model, expected, batch_size, padding_side):
    resolved = resolve(EVERYTHING, model.loaded)
    samples = samples_of(USED)
    random.Random(batch_size).shuffle(samples)  # noqa: S311  (no secret)
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        for record in extract_records(model, resolved, batch, padding_side=padding_side):
            assert_parity(record, expected[record.sample_id])


@pytest.mark.slow
def test_rows_that_go_through_the_decoder_one_by_one(model, expected, monkeypatch):
    """As on a CPU with long prompts. Every question comes twice, so that rows of shared prefixes are there, too."""
    calls = []

    def watched(*args, **options):
        calls.append(len(args[1].rows))
        return prefill_together(*args, **options)

    monkeypatch.setattr(prefill, "SLICE_TOKENS", 0)
    monkeypatch.setattr(prefill, "prefill_together", watched)
    samples = samples_of(USED)
    again = [replace(sample, sample_id=f"{sample.sample_id} again") for sample in samples]
    records = extract_records(model, resolve(EVERYTHING, model.loaded), [*samples, *again], padding_side="left")
    for record in records:
        assert_parity(record, expected[record.sample_id.removesuffix(" again")])
    goes_together = model.loaded.keeps_state or model.loaded.family.decoder.pads_images
    assert (max(calls) == 1) != goes_together


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mllama"], indirect=True)
def test_what_later_calls_take_is_joined(model, expected, monkeypatch):
    """Images of equal states, in a family that does not say that it pads them, as a file of a user's may not."""
    monkeypatch.setattr(prefill, "rows_at_once", lambda _model, _padded: 1)
    for record in extract_records(model, resolve(EVERYTHING, model.loaded), samples_of(USED)):
        assert_parity(record, expected[record.sample_id])


@pytest.mark.slow
def test_images_between_texts_equal_the_full_forward(family, model, reference, monkeypatch):
    """Placeholders place them: the prompt is the processor's for these parts, and its numbers are transformers'.

    A template that puts all images first puts them in the order of placeholders before the text; others fail.
    """
    images = [encoded(picture((60, 40), 1)), encoded(picture((40, 70), 2))]
    between = Sample("s", 0, tuple(images), "Is <image 2> like <image 1>? Say why.")
    leading = replace(between, question="<image 2> <image 1>\nAre they alike? Say why.")
    sample = between if family.interleaves else leading
    resolved = resolve(EVERYTHING, model.loaded)
    (item,) = prepare(model.loaded, resolved, [sample])
    assert not isinstance(item, Failure)
    theirs = processor_inputs(model.loaded, resolved, sample)
    assert theirs is not None
    assert list(item.prompt.token_ids) == theirs["input_ids"][0].tolist()
    before, between_them, after = item.prompt.text.split(model.loaded.family.prompt.image_in_template)
    if family.interleaves:
        texts = [family.trim(text) for text in ("Is ", " like ", "? Say why.")]
        assert [text in place for text, place in zip(texts, (before, between_them, after), strict=True)] == [True] * 3
    else:
        assert "Are they alike? Say why." in after
        (failure,) = prepare(model.loaded, resolved, [between])
        assert isinstance(failure, Failure)
        assert "needs its image placeholders (<image 2>, <image 1>) where they are" in failure.reason
    images = images[::-1]
    monkeypatch.setattr(reference, "prompt", lambda *args, **options: item.prompt.text)
    expected = expect(reference, images, sample.question)
    assert_parity(extract_records(model, resolved, [sample])[0], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["phi4_multimodal"], indirect=True)
class TestEveryCase:
    """Also the large images, in all batch sizes, shuffled anew for each, so that neighbours differ."""

    @pytest.mark.parametrize(("batch_size", "padding_side"), [(1, "left"), *product([2, 3, 7, 8], ["left", "right"])])
    def test_all_cases_equal_the_full_forward(self, model, all_expected, batch_size, padding_side):
        resolved = resolve(EVERYTHING, model.loaded)
        samples = samples_of(CASES)
        random.Random(f"{batch_size}{padding_side}").shuffle(samples)  # noqa: S311  (no secret)
        for start in range(0, len(samples), batch_size):
            batch = samples[start : start + batch_size]
            records = extract_records(model, resolved, batch, padding_side=padding_side)
            for sample, record in zip(batch, records, strict=True):
                assert record.sample_id == sample.sample_id
                assert_parity(record, all_expected[sample.sample_id])


def test_the_cases_are_worth_comparing(family, model, expected):
    """Several grids, prompts and lengths of answers; some stop, and some are cut."""
    answers = [e.answer_token_ids for e in expected.values()]
    assert len({len(answer) for answer in answers}) >= 3
    assert any(answer[-1] in model.loaded.stop_ids for answer in answers)
    assert len(set(answers)) >= 6
    image_tokens = {
        record.image_tokens for record in extract_records(model, resolve(EVERYTHING, model.loaded), samples_of(USED))
    }
    constant = family.tokens_of_every_image
    assert image_tokens == {constant} if constant else len(image_tokens) >= 5


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("past_multiple", [-1, 0, 1])
def test_padded_lengths_around_multiples_of_32(model, reference, past_multiple, padding_side):
    image = CASES[0].image
    base = expect(reference, [image], "a").prompt_tokens
    target = (base // 32 + 2) * 32 + past_multiple
    questions = ["a" + " a" * (target - base), "a", "a a a a a a a"]
    samples = [Sample(str(i), i, (image,), question) for i, question in enumerate(questions)]
    records = extract_records(model, resolve(EVERYTHING, model.loaded), samples, padding_side=padding_side)
    assert records[0].prompt_tokens == target
    for record, question in zip(records, questions, strict=True):
        assert_parity(record, expect(reference, [image], question))


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_several_images_in_one_prompt_beside_a_single_one(model, reference, expected, padding_side):
    images = [CASES[0].image, CASES[4].image, CASES[1].image]
    samples = [
        Sample("two", 0, tuple(images[:2]), "Which differs?"),
        samples_of([CASES[3]])[0],
        Sample("three", 2, tuple(images), "Which of the three is the largest?"),
    ]
    records = extract_records(model, resolve(EVERYTHING, model.loaded), samples, padding_side=padding_side)
    assert_parity(records[0], expect(reference, images[:2], "Which differs?"))
    assert_parity(records[1], expected[CASES[3].name])
    assert_parity(records[2], expect(reference, images, "Which of the three is the largest?"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name, family in FAMILIES.items() if not family.refuses_system], indirect=True
)
def test_several_images_after_a_system_turn(model, reference):
    """Some templates have no system turn with an image."""
    images = [CASES[0].image, CASES[3].image, CASES[1].image]
    expected = expect(reference, images, "Which differs?", system="You see three images.")
    request = replace(EVERYTHING, system="You see three images.")
    samples = [
        Sample("three", 0, tuple(images), "Which differs?"),
        Sample("neighbour", 1, (CASES[2].image,), "How many?"),
    ]
    assert_parity(extract_records(model, resolve(request, model.loaded), samples)[0], expected)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_several_questions_on_one_prefix_equal_their_full_forwards(family, model, reference, padding_side):
    """Two prefixes, each computed once, and questions of different lengths, with their answers."""
    prefixes = ((CASES[4].image, CASES[0].image), (CASES[3].image,))
    questions = ["What is this?", "a", "Is there a red circle in the image? Answer yes or no."]
    asked = [(images, question) for question in questions for images in prefixes]
    samples = [Sample(str(i), i, images, question) for i, (images, question) in enumerate(asked)]
    resolved = resolve(EVERYTHING, model.loaded)
    items = [item for item in prepare(model.loaded, resolved, samples) if not isinstance(item, Failure)]
    (call,) = plan_whole(items, resolved)
    assert call.shares_prefixes == family.shares_prefix
    rows = [[0, 2, 4], [1, 3, 5]] if family.shares_prefix else [[0], [1], [2], [3], [4], [5]]
    assert sorted(sorted(int(item.sample.sample_id) for item in row.items) for row in call.rows) == rows
    for record, (images, question) in zip(
        extract_records(model, resolved, samples, padding_side=padding_side), asked, strict=True
    ):
        assert_parity(record, expect(reference, list(images), question))


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[8]], ids=lambda case: case.name)
def test_transformers_pixels_equal_its_processor(model, reference, case):
    request = Request(layers="all", positions=POSITIONS, residual=True, pixels="transformers", max_new_tokens=8)
    record = extract_records(model, resolve(request, model.loaded), samples_of([case]))[0]
    assert_parity(record, expect(reference, [case.image], case.question, new_tokens=8, pixels="transformers"))


@pytest.mark.slow
def test_every_declaration_is_proved(family, model):
    checks = check_family(model, samples_of([CASES[0], CASES[1], CASES[3], CASES[5]]))
    assert [check for check in checks if not check.passed] == []
    names = {check.name for check in checks}
    assert {"image states under another question", "answers that differ from transformers' generate"} <= names
    on_a_prefix = {
        "a question on the image's prefix and the whole prompt at once",
        "several questions on one prefix and the whole prompt at once",
    }
    assert names & on_a_prefix == (on_a_prefix if family.shares_prefix else set())
