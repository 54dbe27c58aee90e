"""`midsight.wrap` and processors that lack a part: one sentence that names the remedy."""

import copy
from types import SimpleNamespace

import pytest

import midsight
from support.folders import assert_sentence, said_by


@pytest.mark.parametrize("missing", ["tokenizer", "image_processor"])
@pytest.mark.parametrize("how", ["absent", "None"])
def test_a_part_that_is_missing_is_named(model, missing, how):
    processor = model.loaded.processor
    parts = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor, missing: None}
    if how == "absent":
        del parts[missing]
    said = said_by(midsight.wrap, model.loaded.hf_model, SimpleNamespace(**parts))
    assert said == (
        "The processor of class SimpleNamespace has no tokenizer with <|endoftext10|> and image processor; give the "
        "one that AutoProcessor makes for Phi-4-multimodal."
    )


def test_a_tokenizer_without_a_padding_token_is_named(model):
    processor = model.loaded.processor
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.pad_token = None
    parts = SimpleNamespace(tokenizer=tokenizer, image_processor=processor.image_processor)
    said = said_by(midsight.wrap, model.loaded.hf_model, parts)
    assert said is not None
    assert_sentence(said)
    assert said.endswith("has a tokenizer without pad_token; set tokenizer.pad_token.")
