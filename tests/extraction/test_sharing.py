"""Questions on one image: one prefix through the decoder, and the numbers of the whole prompt."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import midsight
from midsight.extraction import sharing
from midsight.extraction.calls import plan_whole
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from support.damages import declaring
from support.pictures import encoded, picture

pytestmark = pytest.mark.usefixtures("rows_together")
QUESTIONS = ["What?", "Is there a red circle in the image? Answer yes or no.", "How many are there?", "And now?"]
EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=8)


def samples_on(*images):
    """Every image with a number of questions, and those of the images mixed."""
    asked = [
        Sample(f"{i}-{q}", 0, (image,), QUESTIONS[q], image=f"{i}.png")
        for q in range(len(QUESTIONS))
        for i, (image, count) in enumerate(images)
        if q < count
    ]
    return [replace(sample, input_index=index) for index, sample in enumerate(asked)]


def ready(model, samples):
    items = prepare(model.loaded, resolve(Request(layers=[0]), model.loaded), samples)
    return [item for item in items if isinstance(item, PreparedSample)]


def records(model, plan, samples, **options):
    outcomes = extract_samples(model.loaded, plan, samples, **options)
    assert all(isinstance(outcome, midsight.Record) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, midsight.Record)]


@pytest.fixture(scope="module")
def samples():
    small, wide = encoded(picture((64, 64), 1)), encoded(picture((640, 480), 2))
    return samples_on((small, 4), (wide, 3), (encoded(picture((300, 200), 3)), 1))


@pytest.fixture
def token_counts(model, monkeypatch):
    """[batch, tokens] of every call of the decoder."""
    counts = []

    def count(_module, _args, arguments):
        given = arguments["input_ids"] if arguments.get("inputs_embeds") is None else arguments["inputs_embeds"]
        counts.append(tuple(given.shape[:2]))

    decoder = model.loaded.hf_model.get_submodule(model.loaded.family.modules.decoder)
    hook = decoder.register_forward_pre_hook(count, with_kwargs=True)
    yield counts
    hook.remove()


@pytest.mark.parametrize("side", ["left", "right"])
def test_shared_prefixes_give_the_numbers_of_every_sample_alone(model, samples, token_counts, side):
    plan = resolve(EVERYTHING, model.loaded)
    together = records(model, plan, samples, padding_side=side)
    prefill = token_counts[:2]
    for sample, record in zip(samples, together, strict=True):
        (alone,) = records(model, plan, [sample])
        for name, vector in alone.vectors.items():
            error = np.linalg.norm(record.vectors[name] - vector) / np.linalg.norm(vector)
            assert error <= 1e-5, (sample.sample_id, name)
        assert record.answer_token_ids == alone.answer_token_ids
        logprobs = [record.answer_logprobs, alone.answer_logprobs]
        assert np.abs(np.subtract(*map(np.array, logprobs))).max() < 1e-5
    longest = max(record.vision_token_index + 1 for record in together)
    rests = Counter[str]()
    for record in together:
        rests[record.image] += record.prompt_tokens - record.vision_token_index - 1
    assert prefill == [(3, longest), (3, max(rests.values()))], "three images, their questions behind them"


def test_images_without_a_second_question_are_prefilled_whole(model, samples, token_counts):
    plan = resolve(EVERYTHING, model.loaded)
    extract_samples(model.loaded, plan, [samples[0], samples[1]])
    assert token_counts[0][0] == 2
    assert all(tokens == 1 for _, tokens in token_counts[1:])


def test_another_system_turn_or_order_of_images_is_another_prefix(model):
    one, two = encoded(picture((64, 64), 1)), encoded(picture((80, 64), 2))
    asked = [
        Sample("a", 0, (one, two), "What?"),
        Sample("b", 1, (two, one), "What?"),
        Sample("c", 2, (one, two), "Why?"),
        Sample("d", 3, (one,), "What?"),
    ]
    (call,) = plan_whole(ready(model, asked), resolve(Request(layers=[0]), model.loaded))
    together = {frozenset(item.sample.sample_id for item in row.items) for row in call.rows}
    assert together == {frozenset("ac"), frozenset("b"), frozenset("d")}


def test_a_prefix_of_the_other_longrope_regime_is_not_shared(model, samples):
    items = ready(model, [sample for sample in samples if sample.image == "0.png"])
    prefix, longest = items[0].prefix_length, max(len(item.prompt.token_ids) for item in items)
    for threshold, shared in ((prefix - 1, [4]), (prefix, []), (longest - 1, [3]), (longest, [4])):
        request = replace(resolve(Request(layers=[0]), model.loaded), longrope_threshold=threshold)
        calls = plan_whole(items, request)
        assert [len(call.items) for call in calls if call.shares_prefixes] == shared
        assert sum(len(call.items) for call in calls) == len(items)
        for call in calls:
            lengths = {len(item.prompt.token_ids) > threshold for item in call.items}
            assert lengths == {call.long_factors}, "one regime a call"


def test_states_that_depend_on_the_question_are_not_shared(model, samples):
    assert not resolve(Request(), declaring(model, shares_image_prefix=False).loaded).share
    assert resolve(Request(), model.loaded).share


def test_kernels_that_take_no_mask_for_every_token_share_nothing(model):
    assert not resolve(Request(), replace(model.loaded, attention="flash_attention_2")).share


def test_sharing_can_be_left_out(model, samples, token_counts):
    plan = resolve(replace(EVERYTHING, share=False), model.loaded)
    records(model, plan, samples)
    assert token_counts[0][0] == len(samples)


def test_a_prefix_that_is_another_images_is_seen(model, samples, monkeypatch):
    """The damage that this code could do: the questions on the two images with the longest prefixes exchanged."""
    plan = resolve(Request(layers=[7], answers=False), model.loaded)
    right = records(model, plan, samples)
    pad_suffixes = sharing.pad_suffixes

    def exchanged(loaded, items, rows):
        return pad_suffixes(loaded, items, [(0, 2, 1)[row] for row in rows])

    monkeypatch.setattr(sharing, "pad_suffixes", exchanged)
    wrong = records(model, plan, samples)
    name = "query_token_representation.layer_7"
    moved = [np.linalg.norm(a.vectors[name] - b.vectors[name]) for a, b in zip(right, wrong, strict=True)]
    assert [error > 1e-3 for error in moved] == [sample.image != "2.png" for sample in samples]
