"""Rules of a tokenizer.json that take for ever, or make a text huge: one sentence from `check` and from `load`."""

import time
from pathlib import Path

import pytest

import midsight
from midsight.check.facts import read_facts
from midsight.checkpoints import tokenizer_rules
from midsight.checkpoints.tokenizer_rules import validate_rules
from midsight.testing import write_qwen2_vl
from support.folders import assert_sentence, copy_folder, edit_json, said_by
from support.once import checkpoint_of_the_run


@pytest.fixture(scope="module")
def plain(run_folder):
    return checkpoint_of_the_run(run_folder, write_qwen2_vl, layers=2)


def replace(pattern, content):
    kind = "Regex" if isinstance(pattern, bytes) else "String"
    text = pattern.decode() if isinstance(pattern, bytes) else pattern
    return {"type": "Replace", "pattern": {kind: text}, "content": content}


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def template(tokens):
    parts = [{"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}] * tokens + [{"Sequence": {"id": "A", "type_id": 0}}]
    named = {"<|im_end|>": {"id": "<|im_end|>", "ids": [3], "tokens": ["<|im_end|>"]}}
    return {"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": named}


HOSTILE = {
    "a pattern that repeats a group": ("normalizer", replace(rb"(e|ee)+f", "b")),
    "a pattern with many repeats": ("pre_tokenizer", split("a*" * 30 + "b")),
    "a pattern in a sequence": ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [split("(x+x+)+y")]}),
    "texts that double": ("normalizer", {"type": "Sequence", "normalizers": [replace("a", "aa")] * 60}),
    "a text that grows": ("normalizer", replace("e", "e" * 100_000)),
    "a long start": ("normalizer", {"type": "Prepend", "prepend": "a" * 10_000_000}),
    "many tokens at the start": ("post_processor", template(500_000)),
    "a decoder that grows": ("decoder", replace("o", "o" * 100_000)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_rules_that_take_too_much(kind, monkeypatch):
    monkeypatch.setattr(tokenizer_rules, "MOST_SECONDS", 1.0)
    name, rule = HOSTILE[kind]
    said = said_by(validate_rules, Path("tokenizer.json"), {name: rule, "model": {}})
    assert said is not None
    assert_sentence(said)
    assert f"tokenizer.json has rules ({name}) that take too much" in said


HARMLESS = {
    "none": {},
    "no rules": {"normalizer": 3},
    "an unknown rule": {"normalizer": {"type": "Own"}},
    "bytes": {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}},
    "words": {
        "pre_tokenizer": split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+")
    },
    "letters in other forms": {"normalizer": {"type": "NFKD"}},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_rules_that_are_ordinary_or_that_transformers_refuses(kind):
    validate_rules(Path("tokenizer.json"), HARMLESS[kind])


@pytest.mark.slow
def test_check_and_load_say_the_same(plain, tmp_path):
    folder = copy_folder(plain, tmp_path / "model")
    edit_json(folder / "tokenizer.json", lambda content: content.update(normalizer=replace("e", "e" * 100_000)))
    began = time.process_time()
    said = said_by(read_facts, folder)
    assert time.process_time() - began < 5
    assert said is not None
    assert f"{folder / 'tokenizer.json'} has rules" in said
    assert said == said_by(midsight.load, folder, device="cpu")
