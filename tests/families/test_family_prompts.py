"""Prompts of every family: as the folder's chat template and processor make them; and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor

import midsight
from midsight.check.facts import read_facts
from midsight.errors import MidsightError, SampleError
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.placeholders import PLACEHOLDER
from midsight.samples.sample import Failure, Sample
from support.family_reference import WITHOUT_PHI
from support.folders import copy_folder, replace_file
from support.parity import extract_records, rgb, samples_of
from support.pictures import CASES, encoded, picture

WITHOUT_TEMPLATE = [name for name in WITHOUT_PHI if name not in ("paligemma", "llama4")]
"""Families that have no template for folders without one."""


def prepared(model, sample, **options) -> Any:
    (item,) = prepare(model.loaded, resolve(Request(**options), model.loaded), [sample])
    return item


@pytest.mark.parametrize("question", ["What is this?", "  Zwei Leerzeichen,\n\nÖl und 是吗?", "a"])
@pytest.mark.parametrize("n_images", [1, 2])
def test_a_prompt_is_what_template_and_processor_make(family, model, reference, n_images, question):
    images = (CASES[0].image, CASES[4].image)[:n_images]
    item = prepared(model, Sample("s", 0, images, question))
    inputs = reference.inputs([rgb(image) for image in images], question)
    assert item.prompt.text == reference.prompt(n_images, question)
    assert list(item.prompt.token_ids) == inputs["input_ids"][0].tolist()
    layout = item.prompt.layout
    is_image = inputs["input_ids"][0] == reference.image_token_id
    assert layout.image_indices().tolist() == is_image.nonzero()[:, 0].tolist()
    asked = model.loaded.tokenizer.decode(item.prompt.token_ids[layout.question.start : layout.question.stop])
    assert asked == family.trim(question)


def write_bos_rule(folder):
    """Makes the folder's tokenizer put its first token before every text, as Llama's published one does.

    That is its bos_token, or its first added token if it has none.
    """
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    bos = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("bos_token")
    added = content["added_tokens"]
    first = next((token for token in added if token["content"] == bos), added[0])
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}
        },
    }
    replace_file(path, json.dumps(content).encode())
    return first


def test_the_tokenizers_habit_about_special_tokens_is_kept(family, folder, model, tmp_path):
    """A first token is added, but not twice: Llama's prompt has its `<|begin_of_text|>` already."""
    folder = copy_folder(folder, tmp_path / "model")
    first = write_bos_rule(folder)
    changed = midsight.load(folder, device="cpu", weights=False)
    plain = model.loaded.tokenizer("a", add_special_tokens=False)["input_ids"]
    added = [] if family.takes_habit else [first["id"]]
    assert changed.loaded.tokenizer("a")["input_ids"] == [*added, *plain]
    sample = samples_of([CASES[0]])[0]
    ids = prepared(changed, sample).prompt.token_ids
    before = prepared(model, sample).prompt.token_ids
    rest = before[1:] if family.first_by == "tokenizer" else before
    assert ids == (before if family.first_by == "template" else (*added, *rest))
    assert list(ids) == own_ids(folder, [CASES[0].image], CASES[0].question)
    facts = read_facts(folder)
    assert facts.example_token_ids.count(first["id"]) == family.first_tokens


def own_ids(folder, images, question, **options):
    """What the folder's own processor makes of one turn."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    shown: list[Any] = [rgb(image) for image in images]
    call: dict[str, Any] = {"tokenize": True, "add_generation_prompt": True, "return_dict": True}
    call["return_tensors"] = "pt"  # without it, Ovis2's processor raises
    turns: list[Any] = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("system", options.get("system")), ("user", question))
        if text is not None
    ]
    if options.get("text_system"):
        turns[0]["content"] = options["system"]
    turns[-1]["content"] = [*({"type": "image", "image": image} for image in shown), *turns[-1]["content"]]
    if type(processor).__name__.startswith("Phi4"):  # its template takes one text
        call |= {"chat_template": processor.tokenizer.chat_template, "processor_kwargs": {"images": shown}}
        texts = [turn["content"][-1]["text"] for turn in turns]
        turns = [{**turn, "content": text} for turn, text in zip(turns, texts, strict=True)]
        turns[-1]["content"] = processor.image_token * len(shown) + turns[-1]["content"]
    encoded = processor.apply_chat_template(turns, **call)
    return encoded["input_ids"][0].tolist()


class TestFoldersTemplate:
    """The folder's own chat template makes the prompt: the published one, a changed one, and none."""

    IMAGES = (CASES[0].image, CASES[4].image)

    def ids(self, folder, **options):
        model = midsight.load(folder, device="cpu", weights=False)
        item = prepared(model, Sample("s", 0, self.IMAGES, "What differs?"), **options)
        return model, list(item.prompt.token_ids), item

    def test_the_published_one(self, folder):
        model, ids, _ = self.ids(folder)
        assert ids == own_ids(folder, self.IMAGES, "What differs?")
        assert model.loaded.notes == ()
        template = model.loaded.chat_template
        assert template is not None
        assert template.source == "folder"

    def test_a_changed_one_is_used_and_said(self, family, folder, tmp_path):
        folder = copy_folder(folder, tmp_path / "model")
        path = folder / "chat_template.jinja"
        text = family.text_in_template
        changed = path.read_text(encoding="utf-8").replace(text, f"'Q: ' + ({text} | trim)")
        replace_file(path, changed.replace("You are a helpful assistant.", "").encode())
        model, ids, item = self.ids(folder)
        assert ids == own_ids(folder, self.IMAGES, "What differs?")
        assert "Q: " in item.prompt.text
        (note,) = model.loaded.notes
        assert f"The chat template of {folder} is not that of the published {model.loaded.family.name}" in note
        assert "Q: " in note.partition("renders ")[2]
        run = midsight.extract(
            [(rgb(self.IMAGES[0]), "  Why? ")], model=model, out=tmp_path / "run", layers=[0], answers=False
        )
        assert run.spec.prompt.is_published is False
        assert "Q: " in str(run.spec.prompt.rendered)

    def test_one_without_its_first_token_is_completed_as_the_processor_does(self, folder, tmp_path):
        folder = copy_folder(folder, tmp_path / "model")
        path = folder / "chat_template.jinja"
        replace_file(path, re.sub(r"{{-? bos_token -?}}", "", path.read_text(encoding="utf-8")).encode())
        _, ids, _ = self.ids(folder)
        assert ids == own_ids(folder, self.IMAGES, "What differs?")
        write_bos_rule(folder)
        _, ids, _ = self.ids(folder)
        assert ids == own_ids(folder, self.IMAGES, "What differs?")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", WITHOUT_TEMPLATE, indirect=True)
    def test_without_one_a_template_has_to_be_named(self, folder, tmp_path):
        folder = copy_folder(folder, tmp_path / "model")
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        (folder / "chat_template.jinja").unlink()
        model = midsight.load(folder, device="cpu")
        assert model.loaded.chat_template is None
        why = r"has no chat template for an image and a text \(it brings none\)"
        (note,) = model.loaded.notes
        assert re.search(f"{why}, so its prompt has to be chosen with the option prompt_template", note)
        with pytest.raises(MidsightError, match=f"{why}; give prompt_template a"):
            model.extract(self.IMAGES[0], "What?")
        (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
        _, ids, _ = self.ids(folder, prompt_template=tmp_path / "own.jinja")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        assert ids == own_ids(folder, self.IMAGES, "What differs?")

    @pytest.mark.parametrize("name", ["llama4"], indirect=True)
    def test_without_one_transformers_processor_may_have_it(self, folder, tmp_path):
        bare = copy_folder(folder, tmp_path / "model")
        (bare / "chat_template.jinja").unlink()
        model, ids, _ = self.ids(bare)
        assert ids == own_ids(bare, self.IMAGES, "What differs?") == own_ids(folder, self.IMAGES, "What differs?")
        assert model.loaded.notes == ()

    @pytest.mark.parametrize("name", ["phi4_multimodal", "paligemma"], indirect=True)
    def test_without_one_some_have_that_of_their_family(self, folder, tmp_path):
        bare = copy_folder(folder, tmp_path / "model")
        (bare / "chat_template.jinja").unlink()
        model, ids, _ = self.ids(bare)
        assert ids == own_ids(folder, self.IMAGES, "What differs?")
        (note,) = model.loaded.notes
        assert note.endswith(f"so that of the published {model.loaded.family.name} is used.")

    def test_raw_is_what_the_processor_makes_of_images_and_text(self, family, folder):
        model, ids, item = self.ids(folder, prompt_template="raw")
        text = model.loaded.family.prompt.image_markup * 2 + "What differs?"
        assert family.given(item.prompt.text) == text
        processor: Any = AutoProcessor.from_pretrained(folder)
        images = [[rgb(image) for image in self.IMAGES]]
        assert ids == processor(text=text, images=images, return_tensors="pt")["input_ids"][0].tolist()

    def test_the_templates_own_system_turn_is_replaced_or_left_out(self, family, folder):
        if not family.own_system:
            assert self.ids(folder, system="")[1] == self.ids(folder)[1]
        if family.refuses_system:
            return
        _, ids, _ = self.ids(folder, system="Be brief.")
        assert ids == own_ids(folder, self.IMAGES, "What differs?", system="Be brief.", text_system=family.text_system)
        if family.own_system:
            _, _, item = self.ids(folder, system="")
            markup = midsight.load(folder, device="cpu", weights=False).loaded.family.prompt.image_markup
            assert item.prompt.text.startswith(f"{family.own_system}{markup}")

    def test_a_template_with_the_image_token_alone_has_a_system_turn_too(self, folder, tmp_path):
        folder = copy_folder(folder, tmp_path / "model")
        path = folder / "chat_template.jinja"
        declared = midsight.load(folder, device="cpu", weights=False).loaded.family.prompt
        text = path.read_text(encoding="utf-8")
        replace_file(path, text.replace(declared.image_markup, declared.image_in_template).encode())
        model = midsight.load(folder, device="cpu", weights=False)
        item = prepared(model, Sample("s", 0, self.IMAGES[:1], "What differs?"), system="")
        assert "system" not in item.prompt.text
        assert item.prompt.layout.image_tokens == item.images[0].tokens
        if declared.image_markup != declared.image_in_template:
            two = prepared(model, Sample("s", 0, self.IMAGES, "What differs?"))
            assert "has 2 images with nothing between them" in two.reason


@pytest.mark.parametrize("name", ["llava"], indirect=True)
def test_the_template_of_the_documentation_keeps_the_places_of_images(model, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"^```jinja\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
    sample = Sample("s", 0, (CASES[0].image, CASES[4].image), "Is <image 2> like <image 1>?")
    item = prepared(model, sample, prompt_template=tmp_path / "own.jinja")
    assert item.prompt.text == "USER: Is <image> like <image>? ASSISTANT:"
    assert prepared(model, sample).reason.startswith("The text needs its image placeholders (<image 2>, <image 1>)")


@pytest.mark.parametrize("pixels", ["pil", "transformers"])
@pytest.mark.parametrize("case", CASES[:7], ids=lambda case: case.name)
def test_pixels_are_exactly_the_processors(family, model, reference, case, pixels):
    if pixels not in family.resizings:
        with pytest.raises(
            MidsightError, match=f"pixels is '{pixels}', and .*'s image processor has only transformers"
        ):
            resolve(Request(pixels=pixels), model.loaded)
        return
    item = prepared(model, samples_of([case])[0], pixels=pixels)
    inputs = reference.inputs([rgb(case.image)], case.question, pixels=pixels)
    theirs = torch.as_tensor(inputs[family.pixels])
    assert torch.equal(item.images[0].pixel_values, theirs.view(item.images[0].pixel_values.shape))


def test_the_two_ways_of_resizing_differ(name, family, model, folder):
    """For Phi-4 only where the image shrinks; not where transformers itself resizes by PIL for want of a filter."""
    if len(family.resizings) == 1:
        assert model.loaded.family.vision.resizings == family.resizings
        return
    image = picture((3000, 2900), 5) if name == "phi4_multimodal" else CASES[4].image
    shrunk = Sample("s", 0, (image,), "What?")
    pil, tensors = (prepared(model, shrunk, pixels=p).images[0] for p in ("pil", "transformers"))
    assert pil.pixel_values.shape == tensors.pixel_values.shape
    own = type(AutoImageProcessor.from_pretrained(folder)).__name__
    assert torch.equal(pil.pixel_values, tensors.pixel_values) == own.endswith("Pil")


def test_a_question_without_image_is_refused_in_a_sentence(model):
    item = prepared(model, Sample("text", 0, (), "What is the capital of France?"))
    assert isinstance(item, Failure)
    assert item.reason == "The sample has no image; midsight extracts from image-question pairs."


def test_no_question_spells_a_control_token(family, model):
    for token in model.loaded.tokenizer.get_added_vocab():
        if PLACEHOLDER.fullmatch(token) or re.fullmatch(family.words, token):
            continue
        item = prepared(model, Sample("s", 0, (CASES[0].image,), f"What {token} is it?"))
        assert isinstance(item, Failure)
        assert token in item.reason


def test_a_system_turn_is_rendered_or_refused(family, model, reference):
    if family.refuses_system:
        with pytest.raises(MidsightError, match=rf"^system is 'You are brief\.', .*{family.refuses_system}"):
            resolve(Request(system="You are brief."), model.loaded)
        return
    item = prepared(model, samples_of([CASES[0]])[0], system="You are brief.")
    assert item.prompt.text == reference.prompt(1, CASES[0].question, "You are brief.")


@pytest.mark.parametrize("pixels", ["pil", "transformers"])
def test_pooled_pixels_are_those_of_the_original_procedure_or_refused(name, family, model, reference, pixels):
    """The processor's tensor averaged over dim 1 until two dims are left, padding tiles included."""
    if not family.crops:
        with pytest.raises(MidsightError, match="makes no crops"):
            resolve(Request(processor_pooled_pixels=True), model.loaded)
        return
    pixels = pixels if pixels in family.resizings else family.resizings[0]
    request = Request(layers=[0], pixels=pixels, processor_pooled_pixels=True, answers=False)
    cases = [CASES[0], CASES[3], CASES[4]]
    records = extract_records(model, resolve(request, model.loaded), samples_of(cases))
    for record, case in zip(records, cases, strict=True):
        pooled = torch.as_tensor(reference.inputs([rgb(case.image)], case.question, pixels=pixels)[family.pixels])
        pooled = pooled[None] if pooled.dim() == 4 else pooled  # the crops of all images on one axis
        while pooled.dim() > 2:
            pooled = pooled.mean(dim=1)
        if name == "phi4_multimodal":
            assert record.processor_pooled_pixels.shape == (448,)
            assert np.array_equal(record.processor_pooled_pixels, pooled[0].numpy())
        assert record.processor_pooled_pixels == pytest.approx(pooled[0].numpy(), abs=1e-6)


def test_an_image_too_thin_for_the_processor_is_refused(family, model):
    thin = encoded(picture((2, 450), 1))
    if not family.refuses_thin:
        assert model.extract(thin, "What is it?", layers=[0], answers=False).prompt_tokens > 0
    else:
        with pytest.raises(SampleError, match=family.refuses_thin):
            model.extract(thin, "What is it?")
