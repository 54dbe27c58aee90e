"""The batch size `auto`: calls grow and shrink by measured time and memory, and come out full. No clock is read."""

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from midsight.extraction import meter, pipeline
from midsight.extraction.budget import (
    FIRST_CALL_FLOPS,
    FIRST_SAMPLES,
    MOST_SAMPLES,
    PREPARED_SAMPLES,
    Budget,
    CallSize,
    make_budget,
)
from midsight.extraction.calls import Call, fits, kind_of, make_rows, plan_calls, sort_rows
from midsight.extraction.meter import Usage
from midsight.extraction.needs import Needs, estimate_needs
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.size_search import LONGEST_S
from midsight.samples.sample import Failure, Sample
from support.planning import CPU, REQUEST, asked

PREFIX, REST, PROMPT_TOKENS = 100, 10, 1000
PLENTY = 2**50


def needing(first_samples: int) -> Needs:
    """What a small model needs, of which `auto` puts so many samples of `PROMPT_TOKENS` into its first call."""
    return Needs(1e-3, 0.0, FIRST_CALL_FLOPS["cpu"] / PROMPT_TOKENS / first_samples)


@dataclass
class Machine:
    """A machine on which calls take a made-up time and memory."""

    seconds: Callable[[CallSize], float] = lambda size: 1 + size.unpadded / 1000
    """By default a call reads the weights for a second, and then computes."""
    bytes: Callable[[CallSize], int | None] = lambda size: size.tokens
    before: Callable[[CallSize], int] = lambda size: 0
    """Bytes in use when a call begins."""
    sizes: list[CallSize] = field(default_factory=list)
    """The sizes of all calls so far."""

    @contextmanager
    def meter(self, _device: torch.device) -> Any:
        usage = Usage()
        yield usage
        size = self.sizes[-1]
        usage.seconds, usage.before, usage.bytes = self.seconds(size), self.before(size), self.bytes(size)

    def budget(self, first_samples: int, *, free_bytes: float = PLENTY) -> Budget:
        made = make_budget("auto", CPU, needing(first_samples), meter=self.meter)
        made.begin(1, PROMPT_TOKENS)
        assert made.samples == first_samples
        return replace(made, free_bytes=free_bytes)

    def call(self, budget: Budget, samples: int, tokens: int | None = None) -> None:
        """A call without padding."""
        self.sizes.append(CallSize(samples, tokens or 100 * samples, tokens or 100 * samples))
        with budget.watching(self.sizes[-1]):
            pass

    def calls(self, budget: Budget, count: int) -> list[int]:
        """Full calls, one after the other; returns their sizes."""
        for _ in range(count):
            self.call(budget, budget.samples)
        return [size.samples for size in self.sizes[-count:]]


@pytest.fixture
def extract(monkeypatch):
    """Extracts questions on made-up images with a machine; returns the number of samples of each call."""

    def run(machine: Machine, budget: Budget, *, images: int, questions: int) -> list[int]:
        def prepare(_model, _request, samples, _note):
            return [asked(sample.input_index, int(sample.image), PREFIX, REST) for sample in samples]

        def compute(_model, _request, call, **_):
            machine.sizes.append(call.size)
            return [Failure(item.sample.sample_id, item.sample.input_index, "made up") for item in call.items]

        monkeypatch.setattr(pipeline, "prepare", prepare)
        monkeypatch.setattr(pipeline, "extract_or_halve", compute)
        pictures = [bytes([image]) for image in range(images)]
        samples = [
            Sample(str(n), n, (pictures[n // questions],), "?", image=str(n // questions))
            for n in range(images * questions)
        ]
        loaded: Any = SimpleNamespace(device=CPU)
        done = [
            outcome.sample_id for call in pipeline.extract_all(loaded, REQUEST, samples, budget) for outcome in call
        ]
        assert sorted(done, key=int) == [sample.sample_id for sample in samples]
        return [size.samples for size in machine.sizes]

    return run


def test_auto_leaves_its_first_size_when_memory_and_speed_allow_more(extract):
    """Ten questions on each image: the first size is no multiple of ten, so no call holds exactly that many."""
    machine = Machine()
    sizes = extract(machine, machine.budget(8), images=100, questions=10)
    assert sizes[0] == 10, "an image's questions stay together"
    assert min(sizes[2:-1]) > 1.5 * 8
    assert max(sizes) == 120, "as many whole images as the largest size takes"
    assert len(sizes) <= 15


def test_a_run_makes_the_same_calls_again(extract):
    sizes = []
    for _ in range(2):
        machine = Machine()
        sizes.append(extract(machine, machine.budget(4), images=40, questions=3))
    assert sizes[0] == sizes[1]
    assert len({*sizes[0]}) > 3


def test_it_stays_where_a_larger_size_is_not_faster_and_remembers_it():
    machine = Machine(seconds=lambda size: size.unpadded * (1 if size.samples <= 16 else 1.2) / 1000)
    budget = machine.budget(8)
    assert machine.calls(budget, 8) == [8, 16, 16, 4, 4, 8, 8, 8], "16 and 4 are each tried twice"
    machine = Machine(seconds=lambda size: (1 + size.unpadded / 1000) * (1 if size.samples <= 16 else 2))
    budget = machine.budget(8)
    assert machine.calls(budget, 4) == [8, 16, 32, 32]
    assert {*machine.calls(budget, 50)} == {16}


def test_it_shrinks_while_smaller_sizes_are_faster():
    machine = Machine(seconds=lambda size: size.samples**2 / 1000)
    assert machine.calls(machine.budget(16), 8) == [16, 32, 32, 8, 4, 2, 1, 1]


def test_one_slow_call_does_not_decide():
    slow = iter([1, 1, 3] + [1] * 20)
    machine = Machine(seconds=lambda size: (1 + size.unpadded / 1000) * next(slow))
    assert machine.calls(machine.budget(8), 5) == [8, 16, 32, 32, 64]


def test_speeds_of_longer_and_shorter_samples_are_not_compared():
    machine = Machine(seconds=lambda size: size.samples)
    budget = machine.budget(8)
    machine.call(budget, 8, tokens=8 * 100)
    machine.call(budget, 16, tokens=16 * 10)
    assert budget.samples == 32, "fewer tokens per second, but of other samples"


def test_a_call_of_less_than_half_the_size_says_nothing_of_it():
    machine = Machine()
    budget = machine.budget(8)
    machine.call(budget, 3)
    assert budget.samples == 8
    machine.call(budget, 4)
    assert budget.samples == 16


def test_calls_do_not_become_longer_than_some_minutes():
    machine = Machine(seconds=lambda size: LONGEST_S / 10 * math.sqrt(size.samples))
    sizes = machine.calls(machine.budget(8), 9)
    assert sizes[-1] == sizes[-2]
    assert machine.seconds(machine.sizes[-1]) <= LONGEST_S < 4 * machine.seconds(machine.sizes[-1])


def test_memory_is_measured_on_the_largest_call():
    used = iter([100, 1000, 10])
    machine = Machine(bytes=lambda _: next(used))
    budget = machine.budget(8, free_bytes=2000)
    machine.call(budget, 8, tokens=10)
    assert budget.tokens == 200
    machine.call(budget, 16, tokens=100)
    assert budget.tokens == 200
    machine.call(budget, 16, tokens=50)
    assert budget.tokens == 200, "a call smaller than another says nothing"


def test_memory_that_a_call_leaves_to_the_next_is_counted():
    before, used = iter([500, 1400, 1500]), iter([1000, 100, 1000])
    machine = Machine(before=lambda _: next(before), bytes=lambda _: next(used))
    budget = machine.budget(8, free_bytes=2000)
    machine.call(budget, 8, tokens=100)
    assert budget.tokens == 200
    machine.call(budget, 8, tokens=100)
    assert budget.tokens == 200, "the peak is the same, though only 100 bytes are new"
    machine.call(budget, 8, tokens=200)
    assert budget.tokens == 200


def test_what_memory_cannot_hold_is_not_planned(extract):
    token_bytes = 10_000  # so that the mask of the questions takes little beside them
    machine = Machine(bytes=lambda size: token_bytes * size.tokens)
    load = 5 * (PREFIX + 3 * (REST + REQUEST.answer_tokens))
    sizes = extract(machine, machine.budget(4, free_bytes=token_bytes * load), images=40, questions=3)
    assert max(sizes) == 15


def test_logits_take_memory_of_every_sample():
    budget = Budget(CPU, 8, 8, tokens=1000, sample_tokens=50)
    assert budget.holds(CallSize(samples=8, tokens=600, unpadded=600))
    assert not budget.holds(CallSize(samples=8, tokens=601, unpadded=601))


def test_after_out_of_memory_calls_are_half_as_large_and_grow_no_more():
    machine = Machine()
    budget = machine.budget(8)
    size = CallSize(8, 800, 800)
    machine.sizes.append(size)
    with budget.watching(size):
        budget.learn(size, False)
        budget.learn(CallSize(4, 400, 400), True)
    assert (budget.samples, budget.tokens) == (8, 400), "the time of its parts is not a call's"
    machine.call(budget, 4, tokens=400)
    assert (budget.samples, budget.tokens) == (16, 400)


def test_without_a_measure_of_memory_calls_grow_to_what_was_estimated(monkeypatch, extract):
    """As on macOS, on Apple's GPUs, and in containers that hide the peak of a process."""
    monkeypatch.setattr("midsight.extraction.budget.free_memory", lambda: 16_000)
    needs, machine = replace(needing(8), token_bytes=1.0), Machine(bytes=lambda _: None)
    budget = make_budget("auto", CPU, needs, meter=machine.meter)
    budget.begin(1, PROMPT_TOKENS)
    assert (budget.samples, budget.tokens) == (4, 4000)
    prompt = PREFIX + REST + REQUEST.answer_tokens
    assert max(extract(machine, budget, images=200, questions=1)) == 4000 // prompt
    assert budget.tokens == 4000
    slow = Machine(seconds=lambda size: size.samples**2, bytes=lambda _: None)
    budget = make_budget("auto", CPU, needs, meter=slow.meter)
    budget.begin(1, PROMPT_TOKENS)
    assert slow.calls(budget, 5) == [4, 8, 8, 2, 1]


def test_a_machine_that_cannot_tell_the_peak_measures_time_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(meter, "PROCESS", tmp_path / "there is none")
    for device in (CPU, torch.device("meta")):
        with meter.measured(device) as usage:
            pass
        assert usage.bytes is None
        assert usage.seconds > 0


@pytest.mark.parametrize(("free", "tokens", "samples"), [(8e9, 2e4, 8), (2e9, 5e3, 2)])
def test_the_first_size_follows_from_the_model_and_the_free_memory(monkeypatch, free, tokens, samples):
    monkeypatch.setattr("midsight.extraction.budget.free_memory", lambda: int(free))
    large = Needs(token_bytes=1e5, sample_bytes=1e8, token_flops=1e6)
    budget = make_budget("auto", CPU, large)
    assert budget.tokens == tokens
    budget.begin(3, 3 * PROMPT_TOKENS)
    assert budget.samples == samples
    budget.begin(1, 1)
    assert budget.samples == samples, "it begins once"
    slow = make_budget("auto", CPU, replace(large, token_flops=1e12))
    slow.begin(1, PROMPT_TOKENS)
    assert slow.samples == 1


def test_the_first_size_follows_from_the_lengths_of_the_first_samples(extract):
    """What questions share on an image is work that is done once, so that more of them go into the first call."""
    alone, together = PREFIX + REST + REQUEST.answer_tokens, PREFIX + 10 * (REST + REQUEST.answer_tokens)
    needs = replace(needing(1), token_flops=FIRST_CALL_FLOPS["cpu"] / (16 * alone))
    machine = Machine()
    assert extract(machine, make_budget("auto", CPU, needs, meter=machine.meter), images=100, questions=1)[:2] == [
        16,
        32,
    ]
    machine = Machine()
    budget = make_budget("auto", CPU, needs, meter=machine.meter)
    first = extract(machine, budget, images=100, questions=10)[0]
    assert 16 * alone * 10 / together / 2 <= first <= 16 * alone * 10 / together


def test_a_first_size_that_cannot_grow_is_compared_with_smaller_ones():
    most = MOST_SAMPLES["cpu"]
    machine = Machine()
    assert machine.calls(machine.budget(most), 5) == [most, most, most // 2, most // 2, most]
    machine = Machine(seconds=lambda size: size.samples**2 / 1e6)
    assert machine.calls(machine.budget(most), 4) == [most, most, most // 2, most // 4]


def test_a_slow_first_call_does_not_make_calls_smaller():
    """A process makes its kernels ready in its first call."""
    most, slow = MOST_SAMPLES["cpu"], iter([3] + [1] * 20)
    machine = Machine(seconds=lambda size: (1 + size.unpadded / 1000) * next(slow))
    assert machine.calls(machine.budget(most), 6) == [most, most, most // 2, most // 2, most, most]


def test_workers_that_do_order_after_order_go_on_with_the_size_that_they_found(extract):
    """Each order is a stream of its own; the first ones may be smaller than a first call."""
    machine = Machine()
    prompt = PREFIX + REST + REQUEST.answer_tokens
    budget = make_budget("auto", CPU, Needs(1e-3, 0.0, FIRST_CALL_FLOPS["cpu"] / (16 * prompt)), meter=machine.meter)
    assert extract(machine, budget, images=10, questions=1) == [10]
    assert extract(machine, budget, images=250, questions=1)[1:] == [16, 32, 64, 128, 10]
    assert extract(machine, budget, images=250, questions=1)[6:] == [128, 122]


def test_a_model_that_is_faster_than_preparing_begins_early(extract):
    """Samples are prepared while earlier ones are in the model, so a large first call would let it wait."""
    needs = replace(needing(1), token_flops=FIRST_CALL_FLOPS["cpu"] / PREPARED_SAMPLES / (PREFIX + 15))
    rows: list[list[PreparedSample | Failure]] = [[asked(n, n, PREFIX, 10)] for n in range(1, 100)]
    for faster, first in ((0.9, FIRST_SAMPLES), (1.1, 99)):
        budget = make_budget("auto", CPU, replace(needs, token_flops=faster * needs.token_flops))
        assert len(next(iter(pipeline.windows(rows, REQUEST, budget, 2**40)))) == first
    machine = Machine()
    budget = make_budget("auto", CPU, replace(needs, token_flops=needs.token_flops / 2), meter=machine.meter)
    assert extract(machine, budget, images=200, questions=1)[:3] == [FIRST_SAMPLES, 2 * FIRST_SAMPLES, 104]


def test_a_small_dataset_is_one_call(extract):
    machine = Machine()
    assert extract(machine, make_budget("auto", CPU, needing(8), meter=machine.meter), images=5, questions=10) == [50]


def test_needs_are_those_of_the_config():
    text = SimpleNamespace(
        num_hidden_layers=2, hidden_size=8, intermediate_size=16, num_attention_heads=2, vocab_size=100
    )
    config = SimpleNamespace(get_text_config=lambda: text)
    needs = estimate_needs(config, torch.bfloat16, logits=True)
    assert needs.token_flops == 2 * 2 * (4 * 8 * 8 + 3 * 8 * 16)
    assert needs.token_bytes == 2 * (2 * 2 * 8 + 8 * 8 + 4 * 16)
    assert needs.sample_bytes == 100 * (2 + 44)
    assert estimate_needs(config, torch.float32, logits=False).sample_bytes == 0


def test_needs_of_layers_that_differ():
    def layer(inner, key_heads):
        return {
            "hidden_size": 8,
            "intermediate_size": inner,
            "num_attention_heads": 2,
            "num_key_value_heads": key_heads,
        }

    layers = [SimpleNamespace(**layer(16, 1)), SimpleNamespace(**layer(32, 2))]
    text = SimpleNamespace(hidden_size=8, vocab_size=100, is_heterogeneous=True, per_layer_config=layers)
    needs = estimate_needs(SimpleNamespace(get_text_config=lambda: text), torch.bfloat16, logits=False)
    assert needs.token_flops == 2 * (2 * 8 * (8 + 4 + 8 + 8) + 3 * 8 * (16 + 32))
    assert needs.token_bytes == 2 * (2 * (4 + 8) + 8 * 8 + 4 * 32)


def test_needs_of_layers_whose_widths_are_a_list():
    text = SimpleNamespace(num_hidden_layers=2, hidden_size=8, intermediate_size=[16, 32], num_attention_heads=2)
    needs = estimate_needs(SimpleNamespace(get_text_config=lambda: text), torch.bfloat16, logits=False)
    assert needs.token_flops == 2 * (2 * 4 * 8 * 8 + 3 * 8 * (16 + 32))
    assert needs.token_bytes == 2 * (2 * 2 * 8 + 8 * 8 + 4 * 32)


@st.composite
def some_windows(draw):
    """Windows of questions on images; an image's questions are in one window."""
    images = draw(st.lists(st.tuples(st.integers(2, 60), st.integers(1, 12)), min_size=1, max_size=12))
    windows, number = [[] for _ in range(3)], 0
    for image, (prefix, questions) in enumerate(images):
        window = draw(st.integers(0, 2))
        for _ in range(questions):
            windows[window].append(asked(number, 1 + image, prefix, draw(st.integers(1, 9))))
            number += 1
    return windows


@given(
    some_windows(),
    st.integers(1, 16),
    st.sampled_from([60, 200, 1000, math.inf]),
    st.sampled_from([0.0, 3.0]),
    st.booleans(),
    st.sampled_from([None, 30]),
)
def test_whole_images_and_full_calls(windows, samples, tokens, sample_tokens, answers, threshold):
    """An image's questions are cut only if they do not fit; calls are full but for the last; every sample is in one."""
    request = replace(REQUEST, answers=answers, longrope_threshold=threshold)
    budget = Budget(CPU, samples, 16, tokens, sample_tokens)
    waiting, done, rows = [], [], []
    for window in windows:
        made = make_rows(window, request)
        rows += made
        waiting = sort_rows([*waiting, *made])
        calls = [*plan_calls(waiting, budget, last=False)]
        done += calls
        for index, call in enumerate(calls):
            coming = [row for later in calls[index + 1 :] for row in later.rows] + waiting
            same_kind = [row for row in coming if kind_of(row) == kind_of(call.rows[0])]
            if call.size.samples < samples:
                assert same_kind
                assert not fits([*call.rows, same_kind[0]], budget)
    done += plan_calls(waiting, budget)
    assert waiting == []
    numbers = [int(item.sample.sample_id) for call in done for item in call.items]
    assert sorted(numbers) == list(range(sum(map(len, windows))))
    for row in rows:
        size = Call((row,)).size
        if size.samples <= budget.most_samples and budget.load(size) <= tokens:
            of_row = {item.sample.sample_id for item in row.items}
            assert sum(bool(of_row & {item.sample.sample_id for item in call.items}) for call in done) == 1


@pytest.mark.slow
@pytest.mark.skipif(not (meter.PROCESS / "clear_refs").exists(), reason="only Linux says the peak of a process")
def test_the_peak_is_that_of_the_call_and_not_of_an_earlier_one():
    size = 200 * 2**20
    with ProcessPoolExecutor(1, get_context("spawn")) as new_process:  # here, memory of other tests may be freed
        large, small = new_process.submit(peaks_of, size, size // 10).result()
    if large is None or small is None:
        pytest.skip("this machine does not let a process set its peak back")
    assert 0.9 * size < large < 1.5 * size
    assert small < 0.5 * size


def peaks_of(*sizes):
    """The memory that calls take which fill so many bytes, as it is measured; None if it cannot be."""
    peaks = []
    for size in sizes:
        with meter.measured(CPU) as usage:
            torch.ones(size // 4)
        peaks.append(usage.bytes)
    return peaks
