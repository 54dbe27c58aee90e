"""The cache with room and attention in groups, against transformers' own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from midsight.families.grouped_attention import GROUPED, grouped_attention
from midsight.families.growing_cache import ROOM, GrowingLayer

TOKENS = st.integers(1, ROOM + 3)


def states(rows, tokens, seed):
    return torch.randn(rows, 2, tokens, 3, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.one_of(TOKENS, st.lists(st.integers(0, 2), min_size=1, max_size=3)), min_size=1, max_size=8))
def test_appending_and_dropping_rows_equal_the_cache_of_transformers(steps):
    ours: Any = GrowingLayer()
    theirs: Any = DynamicCache()
    rows = 3
    for seed, step in enumerate(steps):
        if isinstance(step, int):
            new = states(rows, step, seed), states(rows, step, -seed - 1)
            assert all(map(torch.equal, ours.update(*new), theirs.update(*new, layer_idx=0)))
        elif ours.is_initialized:
            kept = torch.tensor([row % rows for row in step])
            rows = len(kept)
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
            assert torch.equal(ours.keys, theirs.layers[0].keys)
            assert torch.equal(ours.values, theirs.layers[0].values)


def test_rows_that_are_put_together_have_the_same_number_of_tokens():
    layer: Any = GrowingLayer()
    first, second = states(2, 5, 0), states(1, 5, 1)
    layer.put(first, first, 0, 3)
    layer.put(second, second, 2, 3)
    assert torch.equal(layer.keys, torch.cat([first, second]))
    with pytest.raises(ValueError, match=r"These rows have 4 tokens, and others 5; run them together\."):
        layer.put(states(1, 4, 1), states(1, 4, 1), 2, 3)


def test_a_step_copies_its_own_token_only():
    layer = GrowingLayer()
    layer.update(states(2, 100, 0), states(2, 100, 1))
    places = set()
    for step in range(ROOM):
        keys, values = layer.update(states(2, 1, step), states(2, 1, step))
        places.add((keys.data_ptr(), values.data_ptr()))
    assert keys.shape[-2] == 100 + ROOM
    assert len(places) == 1


@pytest.mark.parametrize(("mask_rows", "mask_tokens"), [(4, 5), (1, 5), (4, 1)])
def test_attention_in_groups_equals_attention_on_copied_keys(mask_rows, mask_tokens):
    drawn = torch.Generator().manual_seed(0)
    query = torch.randn(4, 6, 5, 8, generator=drawn)
    key, value = torch.randn(2, 4, 2, 9, 8, generator=drawn)
    reads = torch.rand(mask_rows, 1, mask_tokens, 9, generator=drawn) > 0.3
    reads[..., 0] = True
    bias = torch.zeros(reads.shape).masked_fill(~reads, torch.finfo(torch.float32).min)
    module: Any = SimpleNamespace(num_key_value_groups=3)
    expected, _ = sdpa_attention_forward(module, query, key, value, bias, scaling=0.4)
    computed, _ = AttentionInterface()[GROUPED](module, query, key, value, bias, scaling=0.4)
    assert computed.shape == expected.shape
    assert (computed - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize(("tokens", "copied"), [(32, False), (33, True)])
def test_keys_are_copied_where_copies_of_the_mask_would_be_larger(monkeypatch, tokens, copied):
    drawn = torch.Generator().manual_seed(0)
    query = torch.randn(1, 6, tokens, 8, generator=drawn)
    key, value = torch.randn(2, 1, 2, 40, 8, generator=drawn)
    heads = []

    def attend(query, key, value, **options):
        heads.append(key.shape[1])
        return scaled_dot_product_attention(query, key, value, **options)

    monkeypatch.setattr("midsight.families.grouped_attention.scaled_dot_product_attention", attend)
    module: Any = SimpleNamespace(num_key_value_groups=3)
    bias = torch.zeros(1, 1, tokens, 40)
    expected, _ = sdpa_attention_forward(module, query, key, value, bias)
    computed, _ = AttentionInterface()[GROUPED](module, query, key, value, bias)
    assert (computed - expected).norm() < 1e-6 * expected.norm()
    assert heads == ([] if copied else [2])


@pytest.mark.parametrize(
    ("kernel", "mask", "expected"),
    [
        ("sdpa", torch.zeros(2, 1, 3, 9), GROUPED),
        ("sdpa", {"full_attention": torch.zeros(2, 1, 3, 9), "sliding_attention": torch.zeros(2, 1, 3, 9)}, GROUPED),
        ("sdpa", torch.ones(2, 9), "sdpa"),
        ("sdpa", None, "sdpa"),
        ("eager", torch.zeros(2, 1, 3, 9), "eager"),
    ],
)
def test_the_kernel_changes_for_masked_sdpa_and_changes_back(kernel, mask, expected):
    config = SimpleNamespace(_attn_implementation_internal=kernel, _attn_implementation=kernel)
    decoder = SimpleNamespace(config=config)

    def fail():
        with grouped_attention(decoder, mask):
            assert config._attn_implementation_internal == expected
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert config._attn_implementation_internal == kernel
