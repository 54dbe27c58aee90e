"""Log-probabilities and entropy of large vocabularies, against float64 throughout."""

import pytest
import torch

from midsight.extraction.decode import Distribution, describe_first_token

VOCABULARY = 200_064


def logits(seed, spread):
    drawn = torch.randn(4, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread
    drawn[:, 7] = -torch.inf
    return drawn - 40  # far from 0, as a model's may be


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 30.0])
def test_log_probabilities_and_entropy_are_those_of_float64(spread):
    raw = logits(0, spread)
    expected = raw.double().log_softmax(dim=-1)
    chosen = expected.topk(10).indices
    distribution = Distribution.of(raw)
    assert (distribution.logprobs(chosen) - expected.gather(1, chosen)).abs().max() < 1e-6
    entropy = torch.special.entr(expected.exp()).sum(dim=-1)
    assert (distribution.entropies() - entropy).abs().max() < 1e-6 * max(1, entropy.max().item())


def test_logits_that_are_not_numbers_stay_visible():
    raw = logits(1, 1.0)
    raw[2, 5] = torch.nan
    described = describe_first_token(raw)
    assert [one.entropy == one.entropy for one in described] == [True, True, False, True]
