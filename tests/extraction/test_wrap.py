"""A model that the user loaded gives the numbers of the folder it came from."""

import pytest
import torch
from transformers import AutoProcessor

import midsight
from support.parity import LIMIT
from support.pictures import CASES
from support.reference import load_reference_model, relative_error


def test_a_wrapped_model_is_fixed_and_gives_the_same_numbers(checkpoint, model):
    wrapped = midsight.wrap(load_reference_model(checkpoint, fixed=False), AutoProcessor.from_pretrained(checkpoint))
    assert "bidirectional" in wrapped.loaded.fixes[0]
    assert (wrapped.loaded.lora, wrapped.loaded.format) == ("as given", "in memory")
    for case in (CASES[0], CASES[1]):  # the second fills its crop
        ours, theirs = (m.extract(case.image, case.question, max_new_tokens=6) for m in (wrapped, model))
        assert max(relative_error(ours.vectors[name], theirs.vectors[name]) for name in theirs.vectors) <= LIMIT
        assert ours.answer_token_ids == theirs.answer_token_ids


def test_a_wrapped_model_of_unknown_family_is_refused_by_name():
    with pytest.raises(midsight.MidsightError, match="Linear"):
        midsight.wrap(torch.nn.Linear(1, 1), None)
