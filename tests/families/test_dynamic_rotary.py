"""InternVL's rotary factors change behind 32,768 tokens: an answer that might pass them is refused, never wrong."""

from dataclasses import replace

import pytest
import torch

import midsight
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.sample import Failure, Sample
from support.family_reference import FamilyReference
from support.folders import assert_sentence, copy_folder, edit_json
from support.parity import expect, extract_records, rgb, samples_of
from support.pictures import CASES

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", ["internvl"], indirect=True)]
CASE, MORE = CASES[2], 6
NEVER = 10**6
"""A stop id that no token has."""


def prepared(model, sample, **options):
    (item,) = prepare(model.loaded, resolve(Request(**options), model.loaded), [sample])
    return item


@pytest.fixture(scope="module")
def limit(model):
    """The prompt's number of tokens and five more."""
    item = prepared(model, samples_of([CASE])[0])
    assert isinstance(item, PreparedSample)
    return len(item.prompt.token_ids) + MORE - 1


@pytest.fixture(scope="module")
def short_folder(folder, limit, tmp_path_factory):
    """The small checkpoint, whose factors change behind `limit` tokens."""
    short = copy_folder(folder, tmp_path_factory.mktemp("short") / "model")
    edit_json(short / "config.json", lambda config: config["text_config"].update(max_position_embeddings=limit))
    return short


@pytest.fixture(scope="module")
def short(short_folder):
    return midsight.load(short_folder, device="cpu")


@pytest.fixture(scope="module")
def reference(family, short_folder):
    return FamilyReference(short_folder, replace(family, stop_ids=(NEVER,)))


def endless(model, new_tokens):
    request = resolve(Request(layers=[0], max_new_tokens=new_tokens), model.loaded)
    return replace(request, answer_settings=replace(request.answer_settings, stop_ids=(NEVER,)))


def test_an_answer_up_to_the_last_token_is_that_of_generate(short, reference):
    expected = expect(reference, [CASE.image], CASE.question, new_tokens=MORE)
    (record,) = extract_records(short, endless(short, MORE), samples_of([CASE]))
    assert len(expected.answer_token_ids) == MORE
    assert record.answer_token_ids == expected.answer_token_ids


def test_one_token_more_is_refused_and_nothing_else_is(short, limit):
    item = prepared(short, samples_of([CASE])[0], max_new_tokens=MORE + 1)
    assert isinstance(item, Failure)
    assert_sentence(item.reason)
    assert f"{limit:,}" in item.reason
    assert f"max_new_tokens={MORE}" in item.reason
    assert isinstance(prepared(short, samples_of([CASE])[0], max_new_tokens=MORE + 1, answers=False), PreparedSample)
    shorter = Sample("short", 0, (CASE.image,), "a")
    assert isinstance(prepared(short, shorter, max_new_tokens=MORE + 1), PreparedSample)


def test_transformers_mixes_factors_behind_it(reference):
    """Where this fails, a cache no longer keeps keys of other factors, and longer answers can be taken."""
    inputs = reference.inputs([rgb(CASE.image)], CASE.question)
    options = {"max_new_tokens": MORE + 2, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with torch.inference_mode():
        cached, whole = (
            torch.cat(reference.model.generate(**inputs, **options, use_cache=use, eos_token_id=NEVER).logits)
            for use in (True, False)
        )
    errors = (cached - whole).norm(dim=-1) / whole.norm(dim=-1)
    assert errors[:MORE].max() < 1e-5
    assert errors[MORE:].max() > 1e-3


def test_the_factors_of_a_wrapped_model_that_had_changed_are_those_of_the_prompt(reference, short):
    """A model that has seen a longer prompt keeps its factors until it sees a shorter one."""
    rotary = reference.model.model.language_model.rotary_emb
    longer = torch.arange(2 * rotary.original_max_seq_len)[None]
    rotary(torch.zeros(1), longer)
    assert not torch.equal(rotary.inv_freq, rotary.original_inv_freq)
    wrapped = midsight.wrap(reference.model, reference.processor)
    assert "the factors stay those of the first" in wrapped.loaded.fixes[0]
    assert torch.equal(rotary.inv_freq, rotary.original_inv_freq)
    records = [extract_records(model, endless(model, MORE), samples_of([CASE]))[0] for model in (wrapped, short)]
    assert records[0].answer_token_ids == records[1].answer_token_ids
    assert midsight.wrap(reference.model, reference.processor).loaded.fixes == ()
