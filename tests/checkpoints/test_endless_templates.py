"""Chat templates that take for ever or all memory: they are not used, or the sample fails; and they are rendered as
transformers renders them."""

import json

import pytest
from transformers import AutoProcessor

import midsight
from midsight.check.facts import read_facts
from midsight.prompts import chat_template
from midsight.prompts.chat_template import ChatTemplate, render_places
from midsight.testing import write_qwen2_vl
from support.folders import copy_folder, replace_file
from support.once import checkpoint_of_the_run
from support.pictures import picture

TEMPLATE = "chat_template.jinja"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
TOO_MUCH = "it takes too much time or memory"


@pytest.fixture(scope="module")
def plain(run_folder):
    return checkpoint_of_the_run(run_folder, write_qwen2_vl, layers=2)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.5)


def with_template(plain, tmp_path, edit):
    folder = copy_folder(plain, tmp_path / "model")
    replace_file(folder / TEMPLATE, edit((plain / TEMPLATE).read_text(encoding="utf-8")).encode())
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "head", [LOOP, "{{ 10 ** (10 ** 9) }}", "{% if messages | length == 1 %}" + LOOP + "{% endif %}"]
)
def test_one_without_end_is_not_used(plain, tmp_path, head):
    folder = with_template(plain, tmp_path, lambda text: head + text)
    facts = read_facts(folder)
    assert facts.chat_template == "none"
    assert TOO_MUCH in facts.prompt_notes[0]
    assert midsight.load(folder, device="cpu", weights=False).loaded.notes[-1] == facts.prompt_notes[0]


def test_one_of_2_mb_is_not_used(plain, tmp_path):
    facts = read_facts(with_template(plain, tmp_path, lambda text: text + "{# " + "a" * 2_000_000 + " #}"))
    assert facts.chat_template == "none"
    assert "it is larger than 1 MB" in facts.prompt_notes[0]


CONDITIONS = {
    "a question": "'zzz' in messages[-1].content[-1].text",
    "several images": "messages[-1].content | length > 2",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONDITIONS)
def test_one_that_has_no_end_for_some_samples_fails_those(plain, tmp_path, kind):
    folder = with_template(
        plain, tmp_path, lambda text: text + "{% if " + CONDITIONS[kind] + " %}" + LOOP + "{% endif %}"
    )
    assert read_facts(folder).prompt_notes == ()
    image = picture((64, 48), 1)
    images = [image, image] if kind == "several images" else image
    rows = [
        {"image": image, "question": "What?"},
        {"image": images, "question": "zzz"},
        {"image": image, "question": "a"},
    ]
    model = midsight.load(folder, device="cpu")
    run = midsight.extract(rows, model=model, out=tmp_path / "run", layers=[0], max_new_tokens=1)
    assert len(run) == 2
    (failure,) = run.failures()
    assert TOO_MUCH in failure.reason


EVERYTHING = """
{%- set seen = namespace(images=0) -%}
{%- set names = dict(user='U', assistant='A') -%}
{%- for message in messages -%}
  {%- if message.role == 'tool' %}{% continue %}{% endif -%}
  {%- if tools is not none or documents is not none %}{{ raise_exception('tools') }}{% endif -%}
  {{ eos_token }}{{ names[message.role] }}{{ strftime_now('%Y') }}:
  {%- for part in message.content -%}
    {%- if part.type == 'image' %}{% set seen.images = seen.images + 1 %}<|image_pad|>{% else %}{{ part.text | tojson }}
    {%- endif -%}
  {%- endfor -%}
  {% generation %}{% set inside = 1 %} {{ seen.images }} {% endgeneration %}
    {% if inside is defined %}leaked{% endif %}
{% endfor -%}
{% if add_generation_prompt %}<A>{% endif %}
"""


def test_it_renders_as_transformers_does(plain):
    processor = AutoProcessor.from_pretrained(plain)
    declaration = midsight.load(plain, device="cpu", weights=False).loaded.family.prompt
    for text in (EVERYTHING, (plain / TEMPLATE).read_text(encoding="utf-8")):
        places = (None, "Öl & <b>'?\n\U0001f600", None, " and\ttabs ")
        parts = [{"type": "image"} if place is None else {"type": "text", "text": place} for place in places]
        expected = processor.apply_chat_template(
            [{"role": "user", "content": parts}], chat_template=text, add_generation_prompt=True, tokenize=False
        )
        assert render_places(processor, declaration, ChatTemplate("folder", text), places) == expected


def test_a_processor_of_the_users_own_renders_itself(plain):
    processor = AutoProcessor.from_pretrained(plain)

    class Own(type(processor)):
        def apply_chat_template(self, conversation, **options):
            return json.dumps([conversation, options["chat_template"]])

    processor.__class__ = Own
    declaration = midsight.load(plain, device="cpu", weights=False).loaded.family.prompt
    rendered = render_places(processor, declaration, ChatTemplate("folder", "x"), ("What?",))
    assert json.loads(rendered) == [[{"role": "user", "content": [{"type": "text", "text": "What?"}]}], "x"]
