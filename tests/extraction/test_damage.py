"""The parity test fails for every kind of wrong number: each damage is done on purpose."""

import dataclasses

import pytest
import torch

from midsight import load
from midsight.check.family_checks import largest_error
from midsight.extraction import extract_call, prefill
from midsight.extraction.request import resolve
from support.damages import count_padding_in_decode, declaring, exchange_images, shift_layers, shift_position
from support.parity import EVERYTHING, assert_parity, expect, extract_records, samples_of
from support.pictures import CASES, picture

DAMAGED_CASES = [CASES[0], CASES[1], CASES[3]]


@pytest.fixture(scope="module")
def expected(reference):
    return {case.name: expect(reference, [case.image], case.question) for case in DAMAGED_CASES}


@pytest.fixture
def compare(expected):
    """Extracts all cases in one batch and asserts parity for those named (all by default)."""

    def run(model, cases=DAMAGED_CASES, padding_side="left"):
        plan = resolve(EVERYTHING, model.loaded)
        records = extract_records(model, plan, samples_of(DAMAGED_CASES), padding_side=padding_side)
        by_name = {record.sample_id: record for record in records}
        for case in cases:
            assert_parity(by_name[case.name], expected[case.name])

    return run


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_undamaged_it_passes(compare, model, padding_side):
    compare(model, padding_side=padding_side)


def test_lora_off(compare, checkpoint):
    with pytest.raises(AssertionError, match="is off by"):
        compare(load(checkpoint, device="cpu", lora="off"))


@pytest.mark.parametrize("shift", [-1, 1])
def test_layer_off_by_one(compare, model, monkeypatch, shift):
    shift_layers(monkeypatch, shift, last=7)
    with pytest.raises(AssertionError, match="is off by"):
        compare(model)


@pytest.mark.parametrize("position", ["vision_token", "query_token"])
@pytest.mark.parametrize("shift", [-1, 1])
def test_position_off_by_one(compare, expected, model, monkeypatch, position, shift):
    """Padded on the right, so that all but the longest row have a token behind their query token."""
    shift_position(monkeypatch, position, shift, last=max(e.prompt_tokens for e in expected.values()) - 1)
    with pytest.raises(AssertionError, match=f"{position}_representation.* is off by"):
        compare(model, padding_side="right")


def test_attention_mask_dropped(compare, model, monkeypatch):
    original = prefill.pad_rows

    def without_mask(*args, **kwargs):
        rows = original(*args, **kwargs)
        return dataclasses.replace(rows, prompt_ids=rows.prompt_ids.clamp(min=0))

    monkeypatch.setattr(extract_call, "pad_rows", without_mask)
    with pytest.raises(AssertionError, match="is off by"):
        compare(model)


def test_decode_positions_counted_over_padding(compare, model, monkeypatch):
    """Rotary attention sees differences of positions only, so a prompt that is shifted as a whole keeps its numbers."""
    count_padding_in_decode(monkeypatch)
    with pytest.raises(AssertionError, match="the answers differ"):
        compare(model)


def test_images_exchanged_between_samples(model, monkeypatch):
    pairs = [(picture((64, 64), seed), "What is it?") for seed in (1, 2)]
    right = model.extract_many(pairs, answers=False)
    exchange_images(monkeypatch)
    exchanged = model.extract_many(pairs, answers=False)
    assert largest_error(right[0], exchanged[0]) > 0.01
    assert largest_error(right[0], exchanged[1]) < 1e-5


def test_padding_patches_counted(compare, model, monkeypatch):
    """640 x 480 leaves part of its crops empty; those patches do not belong to the mean."""
    counted = declaring(model, useful_patches=lambda image: torch.ones_like(image.patch_mask.flatten(1)))
    with pytest.raises(AssertionError, match="vision_only_representation is off by"):
        compare(counted)


class TestVisionFix:
    """transformers' tower turns causal for images that fill their crops. When these fail, that is fixed upstream."""

    @pytest.fixture
    def unfixed(self, checkpoint):
        model = load(checkpoint, device="cpu")
        for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
            layer.self_attn.is_causal = True
        return model

    def test_without_it_images_that_fill_their_crops_are_wrong(self, expected, unfixed):
        plan = resolve(EVERYTHING, unfixed.loaded)
        (record,) = extract_records(unfixed, plan, samples_of([CASES[1]]))
        with pytest.raises(AssertionError, match="is off by"):
            assert_parity(record, expected[CASES[1].name])

    def test_a_mixed_batch_does_not_hide_it(self, compare, unfixed):
        """transformers masks all crops of a call or none; here those that are filled go through by themselves."""
        with pytest.raises(AssertionError, match="is off by"):
            compare(unfixed)

    def test_transformers_marks_the_tower_causal(self, checkpoint):
        from support.reference import load_reference_model

        tower = load_reference_model(checkpoint, fixed=False).model.embed_tokens_extend.image_embed.img_processor
        assert all(layer.self_attn.is_causal for layer in tower.encoder.layers)

    def test_the_fixed_tower_equals_eager_attention(self, checkpoint, reference):
        from support.parity import rgb
        from support.reference import Reference, relative_error

        eager = Reference(checkpoint, fixed=False, attn_implementation="eager")
        inputs = reference.inputs([rgb(CASES[1].image)], CASES[1].question)
        ours, theirs = reference.forward(inputs), eager.forward(inputs)
        assert relative_error(ours.vision_mean, theirs.vision_mean) < 1e-5
        assert relative_error(ours.hidden_states[-1], theirs.hidden_states[-1]) < 1e-5
