"""The longrope threshold: each sample uses the rotary factors for its own length, and an answer may cross it."""

import pytest
import torch

from midsight import load
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run
from support.parity import answer_ids, assert_parity, expect, extract_records, rgb
from support.pictures import CASES
from support.reference import Reference, relative_error

pytestmark = pytest.mark.usefixtures("no_halves")
THRESHOLD = 560
REQUEST = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=8)
IMAGE = CASES[0].image


@pytest.fixture(scope="module")
def checkpoint(run_folder):
    """The demo checkpoint with its threshold just above a short prompt on a small image."""
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal, original_max_position_embeddings=THRESHOLD)


@pytest.fixture(scope="module")
def model(checkpoint):
    return load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def reference(checkpoint):
    return Reference(checkpoint, keep=True)


def prompts_of_lengths(model, reference, lengths):
    """Samples whose prompts have exactly these numbers of tokens."""
    shortest = expect(reference, [IMAGE], "a", new_tokens=1).prompt_tokens
    assert min(lengths) >= shortest
    return [Sample(str(i), i, (IMAGE,), "a" + " a" * (length - shortest)) for i, length in enumerate(lengths)]


@pytest.fixture(scope="module")
def crossing(model, reference):
    """Prompts far below, just below, at and above the threshold, with what transformers gives for each.

    It decodes without cache, since its generate fails at the crossing with one.
    """
    samples = prompts_of_lengths(model, reference, [551, THRESHOLD - 2, THRESHOLD, THRESHOLD + 1, THRESHOLD + 40])
    expected = [
        expect(reference, [IMAGE], sample.question, new_tokens=REQUEST.max_new_tokens, use_cache=False)
        for sample in samples
    ]
    return samples, expected


@pytest.mark.slow
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_answers_cross_the_threshold_in_a_batch_with_others_that_do_not(model, crossing, padding_side):
    samples, expected = crossing
    records = extract_records(model, resolve(REQUEST, model.loaded), samples, padding_side=padding_side)
    for record, wanted in zip(records, expected, strict=True):
        assert_parity(record, wanted)
    lengths = [(e.prompt_tokens, e.prompt_tokens + len(e.answer_token_ids)) for e in expected]
    assert sum(before <= THRESHOLD < after for before, after in lengths) >= 2
    assert any(after <= THRESHOLD for _, after in lengths)


@pytest.mark.slow
def test_logprobs_after_the_crossing_are_those_of_a_forward_with_long_factors(model, reference, crossing):
    sample = crossing[0][1]
    record = extract_records(model, resolve(REQUEST, model.loaded), [sample])[0]
    assert record.prompt_tokens + len(answer_ids(record)) > THRESHOLD + 2
    inputs = reference.inputs([rgb(IMAGE)], sample.question)
    logprobs = record.answer_logprobs or ()
    assert len(logprobs) == len(answer_ids(record))
    for generated, token_id in enumerate(answer_ids(record)):
        answered = torch.tensor([answer_ids(record)[:generated]], dtype=torch.int64)
        ids = torch.cat([inputs["input_ids"], answered], dim=1)
        extended = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            logits = reference.generating_model(**extended, use_cache=False, logits_to_keep=1).logits[0, -1]
        logprob = logits.double().log_softmax(-1)[token_id].item()
        assert logprobs[generated] == pytest.approx(logprob, abs=1e-5)


def test_the_regimes_differ(reference, run_folder):
    """Otherwise none of these tests could fail."""
    long = reference.forward(reference.inputs([rgb(IMAGE)], "a" + " a" * 120)).hidden_states
    wide = Reference(checkpoint_of_the_run(run_folder, write_phi4_multimodal))
    short = wide.forward(wide.inputs([rgb(IMAGE)], "a" + " a" * 120)).hidden_states
    assert long.shape == short.shape
    assert long.shape[1] > THRESHOLD
    assert relative_error(long[4][-1], short[4][-1]) > 0.05
