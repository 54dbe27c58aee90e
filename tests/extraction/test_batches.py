"""What goes through the model together: bounded, images kept together, prompts of like length, as memory allows."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import midsight
from midsight.errors import BrokenOffError
from midsight.extraction import extract_call, pipeline, prepare
from midsight.extraction.budget import Budget, make_budget
from midsight.extraction.calls import MAX_PADDING, make_rows, plan_calls, plan_whole
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Failure, Sample
from support.pictures import encoded, picture
from support.planning import CPU, REQUEST, asked


@st.composite
def windows(draw):
    """Samples on a few images of different sizes, in any order."""
    prefixes = draw(st.lists(st.integers(2, 60), min_size=1, max_size=6))
    images = draw(st.lists(st.integers(0, len(prefixes) - 1), max_size=40))
    return [asked(n, 1 + i, prefixes[i], draw(st.integers(1, 9))) for n, i in enumerate(images)]


@given(
    windows(),
    st.integers(1, 9),
    st.sampled_from([30, 100, 1000, math.inf]),
    st.booleans(),
    st.sampled_from([None, 20, 40]),
)
def test_calls_hold_every_sample_once_within_the_budget(window, samples, tokens, share, threshold):
    request = replace(REQUEST, share=share, longrope_threshold=threshold)
    calls = list(plan_calls(make_rows(window, request), Budget(CPU, samples, samples, tokens)))
    assert sorted(int(item.sample.sample_id) for call in calls for item in call.items) == list(range(len(window)))
    for call in calls:
        assert 0 < len(call.items) <= samples
        assert call.size.tokens <= tokens or len(call.items) == 1, "a sample alone may be larger than the budget"
        prefixes = [row.prefix for row in call.rows]
        assert len(prefixes) * max(prefixes) <= MAX_PADDING * sum(prefixes)
        assert_one_kind(call, threshold)


def test_the_mask_of_long_questions_on_one_image_fits_into_free_memory():
    """Without that, the first call of eight questions of 10 kB each would take 4 GB for it."""
    window = [asked(n, 1, 500, 2_500) for n in range(8)]
    free = 5 * 10**8
    calls = [*plan_calls(make_rows(window, REQUEST), Budget(CPU, 8, 8, free_bytes=free))]
    assert [len(call.items) for call in calls] == [2, 2, 2, 2]
    assert all(0 < call.mask_bytes <= free for call in calls)
    assert [len(call.items) for call in plan_calls(make_rows(window, REQUEST), Budget(CPU, 8, 8))] == [8]
    alone = [*plan_calls(make_rows(window[:1], REQUEST), Budget(CPU, 8, 8, free_bytes=1))]
    assert [len(call.items) for call in alone] == [1], "a sample alone may be larger than the budget"


@pytest.mark.parametrize("share", [True, False])
def test_so_does_the_mask_of_long_prompts_whose_images_read_ahead(share):
    """As in Gemma 3: 32 samples of ten images each would take 2 GB for it."""
    request = replace(REQUEST, share=share, images_read_ahead=True)
    free = 2 * 10**8
    rows = make_rows([asked(n, 1 + n, 2_600, 20) for n in range(32)], request)
    calls = [*plan_calls(rows, Budget(CPU, 32, 32, free_bytes=free))]
    assert [len(call.items) for call in calls] == [2] * 16
    assert all(0.5 * free < call.mask_bytes <= free for call in calls)
    (causal,) = plan_calls(make_rows([asked(1, 1, 2_600, 20)], REQUEST), Budget(CPU, 32, 32))
    assert causal.mask_bytes == 0


def assert_one_kind(call, threshold):
    """Prompts of one longrope regime; a shared prefix has the regime of its prompts."""
    lengths = [len(item.prompt.token_ids) for item in call.items]
    assert {threshold is not None and length > threshold for length in lengths} == {call.long_factors}
    if call.shares_prefixes:
        assert all(row.is_shareable for row in call.rows)
        assert all(item.prefix_length == row.prefix for row in call.rows for item in row.items)
        assert not call.long_factors or all(row.prefix > threshold for row in call.rows)


@given(windows().filter(lambda window: len(window) > 1), st.booleans(), st.sampled_from([None, 20, 40]))
def test_a_call_is_halved_into_calls_of_its_kind(window, share, threshold):
    for call in plan_whole(window, replace(REQUEST, share=share, longrope_threshold=threshold)):
        if len(call.items) > 1:
            first, second = call.halves()
            assert first.items + second.items == call.items
            assert abs(len(first.items) - len(second.items)) <= 1
            assert_one_kind(first, threshold)
            assert_one_kind(second, threshold)


@given(windows(), st.integers(1, 9))
def test_an_image_is_in_as_few_calls_as_can_be(window, samples):
    calls = [call.items for call in plan_calls(make_rows(window, REQUEST), Budget(CPU, samples, samples))]
    for image in {item.image_id for item in window}:
        count = sum(item.image_id == image for item in window)
        assert sum(any(item.image_id == image for item in call) for call in calls) == -(-count // samples)


def test_the_budget_may_change_between_two_calls():
    calls = plan_calls(make_rows([asked(n, n, 10, 1) for n in range(1, 9)], REQUEST), now := Budget(CPU, 4, 4))
    assert len(next(calls).items) == 4
    now.tokens = 2 * (10 + 6)
    assert [len(call.items) for call in calls] == [2, 2]


def test_the_model_waits_for_one_call_and_more_and_more_is_planned_together():
    rows: list[list[PreparedSample | Failure]] = [[asked(n, n, 10, 1)] for n in range(100)]
    assert [len(window) for window in pipeline.windows(rows, REQUEST, Budget(CPU, 4, 8), 2**20)] == [
        4,
        8,
        16,
        32,
        32,
        8,
    ]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.10 GB, max allowed: 18.13 GB)."),
    ],
)
def test_a_call_without_memory_is_halved_and_later_ones_are_smaller(model, monkeypatch, error):
    """All samples are extracted, with the numbers they have, and the run does not try large calls again."""
    image = encoded(picture((64, 64), 1))
    pairs = [(image, f"What is {n}?") for n in range(12)]
    plain = model.extract_many(pairs, layers=[0, 7], max_new_tokens=2)
    sizes = []
    whole = extract_call.extract_call

    def too_large(loaded, request, call, side):
        sizes.append(len(call.items))
        if len(call.items) > 3:
            raise error
        return whole(loaded, request, call, side)

    monkeypatch.setattr(extract_call, "extract_call", too_large)
    records = model.extract_many(pairs, layers=[0, 7], max_new_tokens=2, batch_size=6)
    assert sizes[0] == 6
    assert max(sizes[1:]) == 3
    for record, other in zip(records, plain, strict=True):
        assert record.answer_token_ids == other.answer_token_ids


@pytest.mark.parametrize(
    ("error", "bad", "is_told"),
    [(ValueError("a shape"), None, True), (ValueError("a shape"), "2", False), (MemoryError(), None, False)],
)
def test_samples_that_fail_only_together_are_told_once(model, monkeypatch, error, bad, is_told):
    """Halving makes their numbers right, and would hide that every call is made more than once."""
    whole = extract_call.extract_call

    def fail(loaded, request, call, side):
        ids = [item.sample.sample_id for item in call.items]
        if bad in ids or (bad is None and len(ids) > 1):
            raise error
        return whole(loaded, request, call, side)

    monkeypatch.setattr(extract_call, "extract_call", fail)
    samples = [Sample(str(n), n, (encoded(picture((64, 64), n)),), "?") for n in range(8)]
    plan, said = resolve(Request(layers=[0], answers=False), model.loaded), list[str]()
    calls = pipeline.extract_all(model.loaded, plan, samples, make_budget(4, CPU), say=said.append)
    failed = [outcome.sample_id for call in calls for outcome in call if isinstance(outcome, Failure)]
    assert failed == ([bad] if bad else [])
    assert len(said) == is_told
    assert all("A call of 2 samples failed (ValueError: a shape)" in sentence for sentence in said)


def test_the_library_warns_of_samples_that_fail_only_together(model, together_fails):
    pairs = [(encoded(picture((64, 64), n)), "?") for n in range(4)]
    with pytest.warns(UserWarning, match="A call of 2 samples failed") as warned:
        records = model.extract_many(pairs, layers=[0], answers=False, batch_size=2)
    assert (len(warned), len(records)) == (1, 4)


def test_other_errors_leave_the_budget_as_it_is(model, monkeypatch):
    def fail(*_):
        raise ValueError("a shape")

    monkeypatch.setattr(extract_call, "extract_call", fail)
    now = make_budget(4, CPU)
    samples = [Sample(str(n), n, (encoded(picture((64, 64), 1)),), "?") for n in range(4)]
    plan = resolve(Request(layers=[0], answers=False), model.loaded)
    done = list(pipeline.extract_all(model.loaded, plan, samples, now))
    assert all(isinstance(one, Failure) for call in done for one in call)
    assert now.tokens == math.inf


@pytest.mark.parametrize("batch_size", [0, -1, "many", 1.5, True])
def test_a_batch_size_is_auto_or_a_whole_number(model, batch_size):
    with pytest.raises(midsight.MidsightError, match=f"batch_size is {batch_size}; give auto, or 1 or more"):
        model.extract_many([], batch_size=batch_size)


def test_what_comes_before_a_break_is_extracted_and_then_it_breaks(model):
    plan = resolve(Request(layers=[0], answers=False), model.loaded)
    samples = [Sample(str(n), n, (encoded(picture((64, 64), n)),), "?") for n in range(3)]

    def stream():
        yield from samples
        raise BrokenOffError("The stream broke off.")

    calls = pipeline.extract_all(model.loaded, plan, stream(), make_budget(2, CPU))
    done = {outcome.sample_id for _ in range(2) for outcome in next(calls)}
    assert done == {"0", "1", "2"}
    with pytest.raises(BrokenOffError):
        next(calls)


def test_samples_are_prepared_while_others_are_in_the_model():
    """The next window is asked for before the one at hand is done."""
    asked_for = []

    def items():
        for n in range(3):
            asked_for.append(n)
            yield n

    for item in pipeline.prefetch(items()):
        while len(asked_for) < min(item + 2, 3):
            pass  # another thread asks; where it does not, this test hangs
    assert asked_for == [0, 1, 2]


def test_an_error_in_another_thread_is_raised_here():
    def work(item):
        if item == 1:
            raise ValueError("of item 1")
        return item

    results = pipeline.map_in_background(work, range(5))
    assert next(results) == 0
    with pytest.raises(ValueError, match="of item 1"):
        next(results)
    with pytest.raises(ValueError, match="of item 1"):
        list(pipeline.prefetch(map(work, range(5))))


def test_threads_that_start_later_have_as_many_as_before(model):
    def threads():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        model.extract_many([(encoded(picture((64, 64), 1)), "?")] * 2, layers=[0], answers=False)
        assert (torch.get_num_threads(), threads()) == (3, 3)
        plan = resolve(Request(layers=[0], answers=False), model.loaded)
        samples = [Sample(str(n), n, (encoded(picture((64, 64), n)),), "?") for n in range(2)]
        calls = pipeline.extract_all(model.loaded, plan, samples, make_budget(1, CPU))
        next(calls)
        calls.close()
        assert threads() == 3, "also where the samples are not asked for to the end"
    finally:
        torch.set_num_threads(before)


def test_an_image_that_breaks_a_library_fails_alone(model, monkeypatch):
    good, bad = encoded(picture((64, 64), 1)), encoded(picture((64, 64), 2))
    decode_image = prepare.decode_image

    def break_on_one(source, **_):
        if source is bad:
            raise MemoryError("no room for the pixels")
        return decode_image(source)

    monkeypatch.setattr(prepare, "decode_image", break_on_one)
    first, second = model.extract_many([(good, "?"), (bad, "?")], layers=[0], answers=False)
    assert isinstance(first, midsight.Record)
    assert second.reason == "The sample could not be prepared: MemoryError: no room for the pixels."


def test_without_sharing_images_stay_together_too():
    window = [asked(n, 1 + n % 3, 10, 5) for n in range(12)]
    rows = make_rows(window, replace(REQUEST, share=False))
    calls = [call.items for call in plan_calls(rows, Budget(CPU, 4, 4))]
    assert [len({item.image_id for item in call}) for call in calls] == [1, 1, 1]
