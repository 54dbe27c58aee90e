"""docs/adding-a-model.md is true: the file that it builds passes every check on a small random LLaVA."""

import re
import sys
import types
from pathlib import Path

import pytest
from torch import Generator
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import midsight
from midsight.families.catalogue import FAMILIES
from midsight.testing import check_family
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights
from support.parity import samples_of
from support.pictures import CASES

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-model.md"
TOKENS = {31998: "<s>", 31999: "</s>", 32000: "<image>", 32001: "<pad>"}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- message['role'] | upper + ': ' -}}
    {%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\n' -}}{%- endfor -%}
    {%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] + ' ' -}}{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""
"""Renders what the published template renders for one user's turn; the tokenizer adds the first token."""


@pytest.fixture
def llava(monkeypatch):
    """The module of the page, in the catalogue."""
    module = types.ModuleType("midsight.families.llava")
    source = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    exec(compile(source, str(PAGE), "exec"), module.__dict__)  # noqa: S102  (our own page)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FAMILIES, "LlavaForConditionalGeneration", module.__name__)
    return module


@pytest.fixture
def folder(tmp_path):
    """A random LLaVA of four layers, images of 4 x 4 patches."""
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=32002,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=31998,
        eos_token_id=31999,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=32000,
        architectures=["LlavaForConditionalGeneration"],
        dtype="bfloat16",
    )
    tokenizer = make_tokenizer(TOKENS, bos_token="<s>", eos_token="</s>", pad_token="<pad>")  # noqa: S106  (tokens)
    words = dict.fromkeys(tokenizer.get_vocab().values(), 1.0)
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": {**words, 32000: 0.01, 32001: 0.01}}
    weights = draw_weights(LlavaForConditionalGeneration, config, rows, Generator().manual_seed(0), ())
    save_weights(weights, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=31999, pad_token_id=32001).save_pretrained(tmp_path)
    size = {"height": 56, "width": 56}
    image_processor = CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=size)
    LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("llava")
def test_the_page_builds_a_family_that_is_proved(folder):
    model = midsight.load(folder, device="cpu")
    assert model.loaded.notes == (), "its template renders the published prompt"
    checks = check_family(model, samples_of([CASES[0], CASES[1], CASES[4]]))
    assert [check for check in checks if not check.passed] == []
    assert "prompts whose token ids differ from the processor's own" in {check.name for check in checks}
    assert len(checks) >= 15


def test_the_declaration_is_short():
    (declaration,) = re.findall(r"^FAMILY = Family\(.*?^\)", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(declaration.splitlines()) <= 25


def test_without_its_line_in_the_catalogue_it_is_refused(folder):
    with pytest.raises(
        midsight.MidsightError, match=r"LlavaForConditionalGeneration, which is not known; .*Adding a model"
    ):
        midsight.load(folder, device="cpu")
