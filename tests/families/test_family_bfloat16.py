"""bfloat16 on the CPU: midsight is as close to transformers as transformers is to itself in another batch shape."""

import random
from collections import defaultdict

import pytest
import torch

from midsight import load
from midsight.check.generated import NEAR_TIE_NATS
from midsight.extraction.request import Request, resolve
from midsight.taps.tap import POSITIONS
from support.parity import extract_records, rgb, samples_of, vectors_of
from support.pictures import CASES
from support.reference import relative_error

pytestmark = pytest.mark.slow
EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=1)
USED = [case for case in CASES if case.name in ("tiny", "gray", "rgba", "exif")]
SHAPES = ((3, 0), (1, 1), (1, 7), (2, 33))
"""Batches in which transformers is compared with itself: copies of a sample, and tokens of padding before each."""
LONG_SHAPES = ((1, 300), (1, 600))
"""More of them, for processors on which transformers rounds alike in all others."""
FACTOR = 2
"""The largest of some errors against the largest of others that are spread alike."""
ROUNDING = torch.finfo(torch.bfloat16).eps / 2
"""Largest relative rounding error of one number: the limit for means, which have no spread in these batches."""
OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", "cross_attention_mask")


@pytest.fixture(scope="module")
def model(folder):
    return load(folder, device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def reference(family, folder):
    return family.reference(folder, family, dtype=torch.bfloat16)


def in_bfloat16(inputs, copies=1, padding=0):
    """The processor's inputs as a batch of copies, padded left."""

    def batch(name, value):
        value = value.bfloat16() if value.is_floating_point() else value
        if name in OF_TOKENS:
            value = torch.cat([torch.zeros_like(value[:, :1]).expand(-1, padding, *value.shape[2:]), value], dim=1)
        return value.repeat(copies, *[1] * (value.dim() - 1))

    return {name: batch(name, value) for name, value in inputs.items()}


def is_bfloat16(vector):
    """Whether all values are numbers of bfloat16."""
    values = torch.from_numpy(vector)
    return torch.equal(values.bfloat16().float(), values)


@pytest.fixture(scope="module")
def expected(reference):
    """What transformers gives for each sample alone; and by kind of vector, how far other batch shapes are from it."""
    inputs = {case.name: reference.inputs([rgb(case.image)], case.question) for case in USED}
    alone = {
        name: (vectors_of(reference, in_bfloat16(one)), reference.answer(in_bfloat16(one), 1)[0])
        for name, one in inputs.items()
    }

    def spread_between(shapes):
        spread = defaultdict(float)
        for name, one in inputs.items():
            for copies, padding in shapes:
                for column, other in vectors_of(reference, in_bfloat16(one, copies, padding)).items():
                    kind = column.partition(".")[0]
                    spread[kind] = max(spread[kind], relative_error(other, alone[name][0][column]))
        return spread

    spread = spread_between(SHAPES)
    return alone, spread if any(spread.values()) else spread_between(LONG_SHAPES)


def test_batches_differ_from_transformers_by_its_own_spread(family, model, expected):
    alone, spread = expected
    resolved = resolve(EVERYTHING, model.loaded)
    errors = defaultdict(float)
    for batch_size, side in ((1, "left"), (3, "left"), (4, "left" if family.keeps_state else "right")):
        samples = samples_of(USED)
        random.Random(batch_size).shuffle(samples)  # noqa: S311  (no secret)
        for start in range(0, len(samples), batch_size):
            for record in extract_records(model, resolved, samples[start : start + batch_size], padding_side=side):
                vectors, token_id = alone[record.sample_id]
                for name, vector in vectors.items():
                    kind = name.partition(".")[0]
                    errors[kind] = max(errors[kind], relative_error(record.vectors[name], vector))
                ids, logprobs = record.first_token_top_ids or (), record.first_token_top_logprobs or ()
                best = dict(zip(ids, logprobs, strict=True))
                # logits differ by whole steps of bfloat16, and so may by just as much as the limit
                assert round(max(best.values()) - best[token_id], 9) <= NEAR_TIE_NATS
                states = [vector for name, vector in record.vectors.items() if name.startswith("query_token")]
                assert states
                assert all(map(is_bfloat16, states)), "computed in bfloat16"
    limits = {kind: max(ROUNDING, FACTOR * spread[kind]) for kind in errors}
    assert {kind: error for kind, error in errors.items() if error > limits[kind]} == {}
