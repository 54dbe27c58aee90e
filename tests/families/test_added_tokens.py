"""Added tokens of the user's own may stand in a question; those of the template and of images may not."""

import copy
import re
from dataclasses import replace

import pytest

from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.samples.placeholders import PLACEHOLDER
from midsight.samples.sample import Failure, Sample
from support.pictures import CASES

OWN = ["<loc_17>", "<|seg|>", "tumour", "assistant"]
"""As people add them; the last one is also a word of templates."""


@pytest.fixture(scope="module")
def extended(model):
    """The small checkpoint with a tokenizer that has four tokens more, one of them special."""
    processor = copy.deepcopy(model.loaded.processor)
    assert processor.tokenizer.add_tokens([token for token in OWN if token != "<|seg|>"]) == 3
    assert processor.tokenizer.add_tokens(["<|seg|>"], special_tokens=True) == 1
    return replace(model.loaded, processor=processor)


def ask(loaded, question, **options):
    (item,) = prepare(loaded, resolve(Request(**options), loaded), [Sample("s", 0, (CASES[0].image,), question)])
    return item


@pytest.mark.parametrize("token", OWN)
def test_they_are_tokens_of_the_question(extended, token):
    item = ask(extended, f"Where is the {token} in it?")
    assert not isinstance(item, Failure), item
    question = slice(item.prompt.layout.question.start, item.prompt.layout.question.stop)
    assert extended.tokenizer.convert_tokens_to_ids(token) in item.prompt.token_ids[question]


def test_an_option_may_have_them(extended):
    item = ask(extended, "Where?", prompt="<loc_17> {question} <|seg|>")
    assert not isinstance(item, Failure), item


def test_those_of_the_model_are_refused_as_before(family, model, extended):
    """Except those that datasets write for an image: they become its place, and never tokens of the question."""
    plain = ask(extended, "Where is it?")
    assert not isinstance(plain, Failure), plain
    for token in sorted({*model.loaded.tokenizer.get_added_vocab(), *extended.tokenizer.get_added_vocab()} - {*OWN}):
        if token != model.loaded.family.prompt.image_token and not re.fullmatch(family.words, token):
            item = ask(extended, f"Where is {token} in it?")
            if isinstance(item, Failure):
                continue
            assert PLACEHOLDER.fullmatch(token), token
            token_id = extended.tokenizer.convert_tokens_to_ids(token)
            assert item.prompt.token_ids.count(token_id) == plain.prompt.token_ids.count(token_id), token


@pytest.mark.parametrize("name", ["qwen2_vl"], indirect=True)
def test_tokens_that_other_templates_use_are_refused_with_those_templates(extended, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(
        "<|seg|>{% for part in messages[0]['content'] %}{{ '<|image_pad|>' if part['type'] == 'image' "
        "else part['text'] }}{% endfor %}"
    )
    assert isinstance(ask(extended, "Where is the <|seg|>?", prompt_template=str(file)), Failure)
    assert not isinstance(ask(extended, "Where is the <loc_17>?", prompt_template=str(file)), Failure)
