"""The fingerprint of a model in memory tells models with other weights apart, and copies of one weight count once."""

import copy

import torch
from torch import nn

from midsight.checkpoints.fingerprint import weights_fingerprint


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.all_tied_weights_keys = {"head.weight": "embedding.weight"}


def test_a_tied_weight_counts_once_whether_it_is_shared_or_copied():
    shared, copied = Tied(), Tied()
    shared.head.weight = shared.embedding.weight
    copied.head.weight = nn.Parameter(copied.embedding.weight.detach().clone())
    assert weights_fingerprint(shared) == weights_fingerprint(copied)


def test_a_head_with_weights_of_its_own_counts_though_the_config_ties_it():
    one = Tied()
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.head.weight += 1
    assert weights_fingerprint(one) != weights_fingerprint(other)
