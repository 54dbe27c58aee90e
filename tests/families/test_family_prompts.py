"""Prompts of every family: as the folder's chat template and processor make them; and what is refused."""

import json
from typing import Any

import pytest
import torch

import midsight
from midsight.check.facts import read_facts
from midsight.errors import MidsightError, SampleError
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.models.prompts import PromptTemplate, check_template
from midsight.samples.sample import Failure, Sample
from parity import rgb, samples_of
from pictures import CASES, encoded, picture


def prepared(model, sample, **options) -> Any:
    (item,) = prepare(model.loaded, resolve(Request(**options), model.loaded), [sample])
    return item


@pytest.mark.parametrize("question", ["What is this?", "  Zwei Leerzeichen,\n\nÖl und 是吗?", "a"])
@pytest.mark.parametrize("n_images", [1, 2])
def test_a_prompt_is_what_template_and_processor_make(model, reference, n_images, question):
    images = (CASES[0].image, CASES[4].image)[:n_images]
    item = prepared(model, Sample("s", 0, images, question))
    inputs = reference.inputs([rgb(image) for image in images], question)
    assert item.prompt.text == reference.prompt(n_images, question)
    assert list(item.prompt.token_ids) == inputs["input_ids"][0].tolist()
    layout = item.prompt.layout
    is_image = inputs["input_ids"][0] == reference.image_token_id
    assert layout.image_indices().tolist() == is_image.nonzero()[:, 0].tolist()
    asked = model.loaded.tokenizer.decode(item.prompt.token_ids[layout.question.start : layout.question.stop])
    assert asked == question


def test_a_tokenizer_that_would_begin_the_text_itself_adds_nothing(family, model, tmp_path):
    """Llama's published tokenizer puts `<|begin_of_text|>` before every text, and the prompt has it already."""
    folder = family.write(tmp_path / "model")
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    first = content["added_tokens"][0]
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        },
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    changed = midsight.load(folder, device="cpu")
    assert changed.loaded.tokenizer("a")["input_ids"] == [first["id"], *model.loaded.tokenizer("a")["input_ids"]]
    sample = samples_of([CASES[0]])[0]
    assert prepared(changed, sample).prompt == prepared(model, sample).prompt
    facts = read_facts(folder)
    assert facts.example_token_ids.count(first["id"]) == facts.example_prompt.count(first["content"])


@pytest.mark.parametrize("pixels", ["pil", "transformers"])
@pytest.mark.parametrize("case", CASES[:7], ids=lambda case: case.name)
def test_pixels_are_exactly_the_processors(model, reference, case, pixels):
    item = prepared(model, samples_of([case])[0], pixels=pixels)
    inputs = reference.inputs([rgb(case.image)], case.question, pixels=pixels)
    theirs = torch.as_tensor(inputs["pixel_values"])
    assert torch.equal(item.images[0].pixel_values, theirs.view(item.images[0].pixel_values.shape))


def test_the_two_ways_of_resizing_differ(model):
    pil, tensors = (prepared(model, samples_of([CASES[4]])[0], pixels=p).images[0] for p in ("pil", "transformers"))
    assert pil.pixel_values.shape == tensors.pixel_values.shape
    assert not torch.equal(pil.pixel_values, tensors.pixel_values)


def test_a_question_without_image_is_refused_in_a_sentence(model):
    item = prepared(model, Sample("text", 0, (), "What is the capital of France?"))
    assert isinstance(item, Failure)
    assert item.reason == "The sample has no image; midsight extracts from image-question pairs."


def test_no_question_spells_a_control_token(model):
    for token in model.loaded.tokenizer.get_added_vocab():
        item = prepared(model, Sample("s", 0, (CASES[0].image,), f"What {token} is it?"))
        assert isinstance(item, Failure)
        assert token in item.reason


def test_a_system_turn_is_rendered_or_refused(name, model, reference):
    template = PromptTemplate(system="You are brief.")
    if name == "mllama":
        with pytest.raises(
            MidsightError, match=r"--system is 'You are brief\.', and Llama 3\.2 Vision takes no system"
        ):
            check_template(template, model.loaded.tokenizer, model.loaded.adapter)
        return
    item = prepared(model, samples_of([CASES[0]])[0], system="You are brief.")
    assert item.prompt.text == reference.prompt(1, CASES[0].question, "You are brief.")


def test_pooled_pixels_are_those_of_the_original_procedure_or_refused(name, model, reference):
    """The processor's tensor averaged over dim 1 until two dims are left, padding tiles among it."""
    if name != "mllama":
        with pytest.raises(MidsightError, match="cuts none"):
            resolve(Request(processor_pooled_pixels=True), model.loaded)
        return
    for case in (CASES[0], CASES[4]):
        record = model.extract(case.image, case.question, processor_pooled_pixels=True, layers=[0], answers=False)
        pooled = torch.as_tensor(reference.inputs([rgb(case.image)], case.question)["pixel_values"])
        while pooled.dim() > 2:
            pooled = pooled.mean(dim=1)
        assert record.processor_pooled_pixels == pytest.approx(pooled[0].numpy(), abs=1e-6)


def test_an_image_too_thin_for_the_processor_is_refused(name, model):
    thin = encoded(picture((2, 450), 1))
    if name == "mllama":
        assert model.extract(thin, "What is it?", layers=[0], answers=False).prompt_tokens > 0
    else:
        with pytest.raises(SampleError, match="2 x 450 pixels is more than 200 times as long"):
            model.extract(thin, "What is it?")
