"""Decoders whose layers read only the last tokens: the window of a prompt counts its own tokens, never padding."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from midsight import Model, load
from midsight.errors import MidsightError
from midsight.extraction import attention, extract_call, prefill
from midsight.extraction.extract_call import extract_call as extract_one_call
from midsight.extraction.request import Request, resolve
from midsight.families.inputs import sliding_window
from midsight.samples.sample import Sample
from midsight.taps.tap import POSITIONS
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.qwen2_5_vl import write_qwen2_vl
from support.family_reference import FAMILIES
from support.folders import let_layers_slide
from support.parity import assert_parity, expect, extract_records, rgb
from support.pictures import encoded, picture

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=8)
SMALL, WIDE = encoded(picture((64, 64), 1)), encoded(picture((300, 200), 2))
ASKED = [
    (SMALL, "What?"),
    (WIDE, "Is there a red circle in the image? Answer yes or no. " * 3),
    (SMALL, "And what else is there to be seen? " * 6),
    (WIDE, "How many?"),
]
"""Two images with two questions each, of very different lengths."""
SAMPLES = [Sample(str(i), i, (image,), question) for i, (image, question) in enumerate(ASKED)]


class Sliding:
    """A small checkpoint and transformers' own procedure on it, whose window can be set."""

    def __init__(self, name, folder):
        self.loaded = load(folder, device="cpu").loaded
        self.reference = FAMILIES[name].reference(folder, FAMILIES[name])
        generating: Any = getattr(self.reference, "generating_model", None) or self.reference.model
        self.exact = copy.deepcopy(generating).double()

    def set_window(self, tokens):
        reference = self.reference
        models = [getattr(reference, name, None) for name in ("model", "states_model", "generating_model")]
        for model in [self.loaded.hf_model, self.exact, *filter(None, models)]:
            model.config.get_text_config().sliding_window = tokens
        return Model(replace(self.loaded, sliding_window=tokens))

    def expect(self, image, question):
        """The vectors and the answer of transformers, and the answer's log-probabilities by its model in float64.

        In float32 its own are off by 6e-6, and so would take most of the limit.
        """
        expected = expect(self.reference, [image], question, new_tokens=EVERYTHING.max_new_tokens)
        inputs = self.reference.inputs([rgb(image)], question)
        logprobs = []
        for generated, token_id in enumerate(expected.answer_token_ids):
            ids = torch.cat([inputs["input_ids"], torch.tensor([expected.answer_token_ids[:generated]]).long()], dim=1)
            more = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "mm_token_type_ids" in more:
                more["mm_token_type_ids"] = (ids == self.reference.image_token_id).long()
            with torch.inference_mode():
                logits = self.exact(**more, use_cache=False, logits_to_keep=1).logits[0, -1]
            logprobs.append(logits.log_softmax(-1)[token_id].item())
        return expected, logprobs


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    folder = write_qwen2_vl(tmp_path_factory.mktemp("sliding") / "qwen", layers=4)
    let_layers_slide(folder, window=40, full_layers=2)
    return Sliding("qwen2_vl", folder)


@pytest.fixture(scope="module")
def phi(tmp_path_factory):
    return Sliding("phi4_multimodal", write_phi4_multimodal(tmp_path_factory.mktemp("sliding") / "phi", layers=3))


def compare(sliding, window):
    """All samples in one batch, padded on either side, with and without shared prefixes, against transformers."""
    model = sliding.set_window(window)
    wanted = [sliding.expect(*pair) for pair in ASKED]
    for share in (True, False):
        for side in ("left", "right"):
            records = extract_records(
                model, resolve(replace(EVERYTHING, share=share), model.loaded), SAMPLES, padding_side=side
            )
            for record, (expected, logprobs) in zip(records, wanted, strict=True):
                assert_parity(record, expected)
                assert np.abs(np.subtract(record.answer_logprobs or (), logprobs)).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("window", [40, 120, 160, 200])
def test_every_batch_of_a_decoder_with_some_sliding_layers(qwen, window):
    compare(qwen, window)


@pytest.mark.slow
@pytest.mark.parametrize("window", [64, 500])
def test_every_batch_of_a_decoder_whose_layers_all_slide(phi, window):
    compare(phi, window)


def test_one_call_holds_the_questions_on_an_image(qwen, monkeypatch):
    """A call that raised would be halved down to single samples, whose numbers are right."""
    model = qwen.set_window(40)
    calls = []
    monkeypatch.setattr(extract_call, "extract_call", lambda *args: calls.append(args) or extract_one_call(*args))
    extract_records(model, resolve(EVERYTHING, model.loaded), SAMPLES)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("module", "name", "damaged"),
    [
        (attention, "last_of", lambda reads, window: reads),
        (attention, "last_of", lambda reads, window: reads & by_index(reads, window)),
        (prefill, "growing_cache", lambda config: None),
    ],
    ids=["no window", "a window that counts padding", "a cache that drops tokens"],
)
def test_each_part_is_needed(qwen, monkeypatch, module, name, damaged):
    monkeypatch.setattr(module, name, damaged)
    with pytest.raises(AssertionError):
        compare(qwen, 120)


def by_index(reads, window):
    """Whether a token is within the window if tokens are counted by their place in the row."""
    new, total = reads.shape[1:]
    return torch.arange(total) > torch.arange(total - new, total)[:, None] - window


def test_layers_of_other_kinds_are_refused(qwen):
    config = copy.deepcopy(qwen.loaded.config)
    config.get_text_config().layer_types = ["indexed_attention"] * 4
    with pytest.raises(MidsightError, match="layers of the kinds indexed_attention"):
        sliding_window(config)
