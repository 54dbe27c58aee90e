"""Prompt ids, stop ids and crops, from the folder's own files."""

import json
import shutil
from types import SimpleNamespace

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import midsight
from midsight.checkpoints.generation import FILE, as_ids
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.checkpoints.phi4mm.folder import load_image_processor, load_tokenizer
from midsight.families.phi4_multimodal import FAMILY, image_inputs
from midsight.prompts.chat_template import find_template
from midsight.prompts.prompt import make_prompt_format, tokenise_prompt
from midsight.samples.sample import Sample
from support.folders import FACTS, edit_json, needs_facts, write_published_size
from support.pictures import picture

USER, SYSTEM, ASSISTANT, END, IMAGE, ENDOFTEXT = 200021, 200022, 200019, 200020, 200010, 199999
QUESTIONS = (
    "What is this?",
    "Is the forest lit by a full moon?",
    "  Spaces before, and behind  ",
    "\n\nLines\nand\ttabs\n",
    "Ist das ein Ölgemälde? 这是吗? 🦉 e\u0301",
    "x",
    "<picture> | <|nothing|> <|endof|> 'It''s 12.5 %'",
    "How many? " * 60,
)


@pytest.fixture(scope="module")
def raw():
    """The published tokenizer.json as the tokenizers library reads it."""
    return tokenizers.Tokenizer.from_file(str(FACTS / "tokenizer.json"))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """The published folder as sparse files."""
    return open_checkpoint(write_published_size(tmp_path_factory.mktemp("full") / "published"))


@pytest.fixture(scope="module")
def processor(full_size):
    return full_size.load_processor()


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


def prompt_ids(processor, question, *image_tokens, system=None):
    made = make_prompt_format(
        processor,
        FAMILY.prompt,
        user="{question}",
        system=system,
        prompt_template="auto",
        own=find_template(processor, FAMILY.prompt),
        folder="the folder",
    )
    turn = made.turn(Sample("s", 0, (b"",) * len(image_tokens), question))
    return list(tokenise_prompt(processor, FAMILY.prompt, made, turn, image_tokens).token_ids)


@needs_facts
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_prompt_has_exactly_the_published_ids(processor, raw, question):
    tokens = 721
    text = f"<|user|>{'<|endoftext10|>' * tokens}{question}<|end|><|assistant|>"
    ids = prompt_ids(processor, question, tokens)
    inside = raw.encode(question, add_special_tokens=False).ids
    assert ids == [USER, *[IMAGE] * tokens, *inside, END, ASSISTANT]
    assert ids == raw.encode(text).ids


@needs_facts
def test_a_system_turn_and_more_images_come_where_they_belong(processor, raw):
    ids = prompt_ids(processor, "Which?", 3, 5, system="Be brief.")
    brief, which = (raw.encode(text, add_special_tokens=False).ids for text in ("Be brief.", "Which?"))
    assert ids == [SYSTEM, *brief, END, USER, *[IMAGE] * 8, *which, END, ASSISTANT]


@needs_facts
def test_an_example_in_full(processor):
    """Ids of gpt-4o's vocabulary, on which Phi-4's is built."""
    assert prompt_ids(processor, "What is this?", 2) == [USER, IMAGE, IMAGE, 4827, 382, 495, 30, END, ASSISTANT]


@needs_facts
@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text_comes_back_from_its_ids_and_they_are_those_of_the_raw_file(tokenizer, raw, text):
    ids = tokenizer(text)["input_ids"]
    assert ids == raw.encode(text).ids
    assert tokenizer.decode(ids) == text


@needs_facts
def test_special_tokens_are_the_published_ones_and_answers_are_shown_without_them(tokenizer):
    added = {
        token["content"]: int(number)
        for number, token in json.loads((FACTS / "tokenizer_config.json").read_text())["added_tokens_decoder"].items()
    }
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in added} == added
    assert len(tokenizer) <= 200064
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (ENDOFTEXT,) * 3
    assert tokenizer.model_max_length == 131072
    answer = [*tokenizer("Yes , it 's .")["input_ids"], END, ENDOFTEXT]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "Yes , it 's ."


@needs_facts
def test_stop_ids_are_those_of_the_generation_config():
    assert as_ids(read_json(FACTS / FILE)["eos_token_id"], FILE) == (ENDOFTEXT, END)


@needs_facts
def test_the_published_crops_are_36_and_another_number_changes_them(tmp_path):
    """A 6 x 6 grid of 448 pixels, and the largest that 4 crops allow."""
    shutil.copyfile(FACTS / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    large = picture((2600, 2500), 1)
    grids = []
    for dynamic_hd in (None, 4):
        if dynamic_hd is not None:
            edit_json(tmp_path / "preprocessor_config.json", lambda config: config.update(dynamic_hd=4))
        processor = SimpleNamespace(image_processor=load_image_processor(tmp_path))
        grids.append(image_inputs(processor, large, "pil", None).grid)
    assert grids == [(6, 6), (2, 2)]


def test_the_number_of_crops_is_the_folders_own_in_either_format(folder, folder_format):
    """transformers saves it in two files; the test changes both."""
    image = picture((900, 900), 1)
    crops = []
    for dynamic_hd in (36, 4):
        edit_json(folder / "preprocessor_config.json", lambda config, n=dynamic_hd: config.update(dynamic_hd=n))
        if folder_format == "transformers":
            edit_json(
                folder / "processor_config.json",
                lambda config, n=dynamic_hd: config["image_processor"].update(dynamic_hd=n),
            )
        inputs = image_inputs(open_checkpoint(folder).load_processor(), image, "pil", None)
        crops.append((inputs.grid, inputs.tokens))
    assert crops == [((3, 3), 256 + 17 + 48 * 49), ((2, 2), 256 + 17 + 32 * 33)]


@pytest.mark.parametrize("question", QUESTIONS[:5])
def test_the_small_checkpoint_has_the_same_special_ids_in_either_format(folders, question):
    ids = [prompt_ids(open_checkpoint(folder).load_processor(), question, 290) for folder in folders.values()]
    assert ids[0] == ids[1]
    assert ids[0][:291] == [USER, *[IMAGE] * 290]
    assert ids[0][-2:] == [END, ASSISTANT]
    assert max(ids[0][291:-2]) < ENDOFTEXT
    assert {as_ids(read_json(folder / FILE)["eos_token_id"], FILE) for folder in folders.values()} == {(ENDOFTEXT, END)}


@needs_facts
def test_an_answer_of_the_loaded_folder_ends_at_its_own_stop_ids(published):
    """With the published generation_config.json, and with one that stops at what the model says first."""
    folder = published
    (folder / "generation_config.json").unlink()
    shutil.copyfile(FACTS / "generation_config.json", folder / "generation_config.json")
    model = midsight.load(folder, device="cpu")
    assert model.loaded.stop_ids == (ENDOFTEXT, END)
    ids = model.extract(picture((64, 64), 1), "What?", max_new_tokens=2).answer_token_ids
    assert ids is not None
    edit_json(folder / "generation_config.json", lambda config: config.update(eos_token_id=ids[0]))
    record = midsight.load(folder, device="cpu").extract(picture((64, 64), 1), "What?", max_new_tokens=6)
    assert (record.answer_token_ids, record.finish_reason) == (ids[:1], "stop")


@needs_facts
def test_nothing_but_tokenizer_json_decides_the_ids(tmp_path, raw):
    """Class names in tokenizer_config.json point at remote code or at classes with other rules."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FACTS / name, tmp_path / name)
    edit_json(tmp_path / "tokenizer_config.json", lambda config: config.update(tokenizer_class="LlamaTokenizerFast"))
    edit_json(tmp_path / "tokenizer_config.json", lambda config: config.update(add_bos_token=True))
    ids = load_tokenizer(tmp_path)("<|user|> What is this?")["input_ids"]
    assert ids == raw.encode("<|user|> What is this?").ids
