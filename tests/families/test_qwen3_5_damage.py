"""The tests of Qwen3.5 fail for each mistake that a cache which is a state, not keys, invites."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from midsight import load
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction import decode
from midsight.extraction.calls import plan_whole
from midsight.extraction.extract_call import extract_call
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import padding_sides, resolve
from midsight.samples.sample import Sample
from support.damages import DAMAGED_CASES, EVERYTHING, compare_cases
from support.folders import copy_folder
from support.parity import assert_parity, expect, extract_records, samples_of
from support.pictures import CASES

pytestmark = pytest.mark.parametrize("name", ["qwen3_5"], indirect=True)


@pytest.fixture
def as_if_it_had_keys(monkeypatch):
    monkeypatch.setattr(LoadedModel, "keeps_state", False)


def test_padding_after_a_prompt_is_refused(model):
    request = resolve(EVERYTHING, model.loaded)
    items = prepare(model.loaded, request, samples_of(DAMAGED_CASES))
    (call,) = plan_whole([item for item in items if isinstance(item, PreparedSample)], request)
    assert padding_sides(model.loaded) == ("left",)
    with pytest.raises(ValueError, match="keeps a state of the tokens before, so pad its prompts on the left"):
        extract_call(model.loaded, request, call, "right")


@pytest.mark.usefixtures("as_if_it_had_keys")
def test_padding_after_a_prompt(model, reference):
    """The prompt's own states are right; the answers go on from a state with padding in it."""
    with pytest.raises(AssertionError, match="the answers differ"):
        compare_cases(model, reference)


@pytest.mark.usefixtures("as_if_it_had_keys")
def test_two_questions_on_one_state(model, reference):
    questions = ("What is this?", CASES[6].question)
    samples = [Sample(str(i), i, (CASES[4].image,), question) for i, question in enumerate(questions)]
    records = extract_records(model, resolve(EVERYTHING, model.loaded), samples)
    with pytest.raises(AssertionError, match="is off by"):
        assert_parity(records[1], expect(reference, [CASES[4].image], questions[1]))


def test_states_of_other_rows_when_an_answer_ends(model, reference, monkeypatch):
    def turned(cache, rows):
        for layer in cache.layers:
            getattr(layer, "batch_select_indices", lambda kept, layer=layer: layer.reorder_cache(kept.flip(0)))(rows)

    monkeypatch.setattr(decode, "keep_rows", turned)
    with pytest.raises(AssertionError, match="the answers differ"):
        compare_cases(model, reference)


def test_the_published_layers_that_predict_several_tokens_are_left_out(folder, model, tmp_path):
    copied = copy_folder(folder, tmp_path / "model")
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    save_file({**weights, "mtp.fc.weight": torch.zeros(32, 64)}, copied / "model.safetensors", {"format": "pt"})
    case = CASES[0]
    one, other = (
        each.extract(case.image, case.question, answers=False) for each in (load(copied, device="cpu"), model)
    )
    assert one.vectors["query_token_representation.layer_5"].tolist() == (
        other.vectors["query_token_representation.layer_5"].tolist()
    )
