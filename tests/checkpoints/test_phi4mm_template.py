"""The chat template of a published folder: its own, a changed one, and the family's if the folder has none."""

from typing import Any

import pytest

import midsight
from midsight.check.processor import processor_inputs
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.families.phi4_multimodal import FAMILY
from midsight.prompts.chat_template import default_prompt, find_template
from midsight.samples.sample import Sample
from support.folders import FACTS, edit_json, needs_facts, read_json, replace_file, write_published_size
from support.parity import rgb
from support.pictures import CASES

TEMPLATE = "chat_template.jinja"
QUESTION = "What differs?"
IMAGES = (CASES[0].image, CASES[4].image)


@pytest.fixture(params=[TEMPLATE, "tokenizer_config.json"])
def place(request, published):
    """The file that holds the folder's template; Microsoft's has it in tokenizer_config.json."""
    if request.param == "tokenizer_config.json":
        text = (published / TEMPLATE).read_text(encoding="utf-8")
        (published / TEMPLATE).unlink()
        edit_json(published / "tokenizer_config.json", lambda content: content.update(chat_template=text))
    return request.param


def set_template(folder, place, edit):
    """Changes the folder's template where it is; `edit` returns its new text, or None to remove it."""
    if place == TEMPLATE:
        text = edit((folder / TEMPLATE).read_text(encoding="utf-8"))
        (folder / TEMPLATE).unlink()
        if text is not None:
            replace_file(folder / TEMPLATE, text.encode())
    else:
        text = edit(read_json(folder / place)["chat_template"])
        edit_json(folder / place, lambda content: content.pop("chat_template"))
        if text is not None:
            edit_json(folder / place, lambda content: content.update(chat_template=text))


def prompt_of(folder):
    """The loaded model, and the prompt of two images and a question."""
    model = midsight.load(folder, device="cpu").loaded
    request = resolve(Request(), model)
    sample = Sample("s", 0, IMAGES, QUESTION)
    (item,) = prepare(model, request, [sample])
    assert isinstance(item, PreparedSample)
    theirs = processor_inputs(model, request, sample)
    assert theirs is not None
    assert list(item.prompt.token_ids) == theirs["input_ids"][0].tolist()
    return model, item.prompt


def template_of(model):
    return model.chat_template.source, model.chat_template.content


def own_ids(processor, content: Any, **options: Any):
    """What the folder's own processor makes of one user turn."""
    encoded = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, add_generation_prompt=True, return_dict=True, **options
    )
    return tuple(encoded["input_ids"][0])


def own_ids_of_text(processor):
    images = {"images": [rgb(image) for image in IMAGES]}
    return own_ids(processor, f"<|endoftext10|><|endoftext10|>{QUESTION}", processor_kwargs=images)


def test_the_folders_own_template_is_used(published, place):
    model, prompt = prompt_of(published)
    assert template_of(model) == ("folder", "text")
    assert model.notes == ()
    assert prompt.text == f"<|user|><|endoftext10|><|endoftext10|>{QUESTION}<|end|><|assistant|>"
    assert prompt.token_ids == own_ids_of_text(model.processor)


def test_a_changed_template_is_used_and_a_note_says_so(published, place):
    set_template(published, place, lambda text: text.replace("+ message['content']", "+ 'Q: ' + message['content']"))
    model, prompt = prompt_of(published)
    assert template_of(model) == ("folder", "text")
    assert model.notes == (
        f"The chat template of {published} is not that of the published Phi-4-multimodal; it is used, and renders "
        "'<|user|>Q: <|endoftext10|>{question}<|end|><|assistant|>'.",
    )
    assert prompt.text == f"<|user|>Q: <|endoftext10|><|endoftext10|>{QUESTION}<|end|><|assistant|>"
    assert prompt.token_ids == own_ids_of_text(model.processor)


def test_without_a_template_the_familys_is_used_and_a_note_says_so(published, place):
    _, expected = prompt_of(published)
    set_template(published, place, lambda text: None)
    model, prompt = prompt_of(published)
    assert template_of(model) == ("family", "parts")
    assert model.notes == (
        f"{published} has no chat template for an image and a text (it brings none), so that of the published "
        "Phi-4-multimodal is used.",
    )
    assert prompt == expected
    parts = [{"type": "image", "image": rgb(image)} for image in IMAGES] + [{"type": "text", "text": QUESTION}]
    template = FAMILY.prompt.fallback_template
    assert prompt.token_ids == own_ids(model.processor, parts, chat_template=template)


def test_a_template_that_cannot_be_read_is_named(published):
    replace_file(published / TEMPLATE, b"\xff\xfe\x00")
    with pytest.raises(midsight.MidsightError, match=rf"{TEMPLATE} cannot be read .*; download {TEMPLATE} again\."):
        midsight.load(published, device="cpu")


@needs_facts
def test_the_published_template_is_microsofts_own(tmp_path):
    processor = open_checkpoint(write_published_size(tmp_path / "published")).load_processor()
    template = find_template(processor, FAMILY.prompt)
    assert template is not None
    assert (template.source, template.content) == ("folder", "text")
    assert template.text == read_json(FACTS / "tokenizer_config.json")["chat_template"]
    assert default_prompt(processor, FAMILY.prompt, template) == FAMILY.prompt.published
