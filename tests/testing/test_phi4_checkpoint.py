"""The random Phi-4-multimodal checkpoint: complete, deterministic, and sensitive to what tests look at."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, Phi4MultimodalForCausalLM, Phi4MultimodalProcessor

from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run
from support.reference import add_lora

ROOT = Path(__file__).parents[2]
FACTS = Path(os.environ.get("MIDSIGHT_FACTS", ROOT.parent / "shared" / "facts")) / "phi4mm"
needs_facts = pytest.mark.skipif(
    not FACTS.is_dir(), reason="the published Phi-4 files are not here; set MIDSIGHT_FACTS"
)

USER, ASSISTANT, END, IMAGE, AUDIO, ENDOFTEXT = 200021, 200019, 200020, 200010, 200011, 199999
SPECIAL_IDS = {ENDOFTEXT, IMAGE, AUDIO, *range(200018, 200029)}
LAYERS = 8
TOWER = "model.embed_tokens_extend.image_embed.img_processor"

QUESTIONS = (
    "What is this?",
    "Is there a red circle in the image?",
    "How many shapes are there?",
    "Answer yes or no: is it night?",
    "Describe the scene in one sentence.",
    "What color is the triangle on the left of the square? Please explain.",
)


def pictures():
    red = Image.new("RGB", (448, 448), "white")
    ImageDraw.Draw(red).ellipse((100, 120, 300, 320), fill="red")
    blue = Image.new("RGB", (448, 448), "white")
    ImageDraw.Draw(blue).rectangle((100, 120, 300, 320), fill="blue")
    green = Image.new("RGB", (200, 120), "green")
    ImageDraw.Draw(green).polygon([(20, 100), (100, 10), (180, 100)], fill="yellow")
    line = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(line).line((0, 0, 64, 64), fill="white", width=6)
    noise = np.random.default_rng(0).integers(0, 256, (300, 440, 3), dtype=np.uint8)
    return [red, blue, green, line, Image.fromarray(noise)]


def relative(a, b):
    return float((a - b).norm() / b.norm())


def tower_layers(model) -> Any:
    return model.get_submodule(TOWER).encoder.layers


def load(folder):
    """The model with its LoRA, its tower bidirectional as published."""
    model = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    add_lora(model, folder / "vision-lora")
    for layer in tower_layers(model):
        layer.self_attn.is_causal = False
    return model


@torch.inference_mode()
def states(model, inputs):
    """float32 [batch, layers, tokens, hidden size]: what every layer returns, before the final norm."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
        for layer in model.model.layers
    ]
    model(**inputs, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen, dim=1)


@pytest.fixture(scope="module")
def folder(run_folder):
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


@pytest.fixture(scope="module")
def encode(processor):
    def encode(image, question, **options):
        text = f"<|user|><|endoftext10|>{question}<|end|><|assistant|>"
        return dict(processor(text=text, images=image, return_tensors="pt", **options))

    return encode


@pytest.fixture(scope="module")
def red_inputs(encode):
    return encode(pictures()[0], QUESTIONS[0])


@pytest.fixture(scope="module")
def red_states(model, red_inputs):
    return states(model, red_inputs)[0]


@pytest.fixture(scope="module")
def last_image(red_inputs):
    return int((red_inputs["input_ids"][0] == IMAGE).nonzero()[-1])


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# the folder


def test_folder_has_every_file_and_is_small(folder):
    files = contents(folder)
    assert set(files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vision-lora/adapter_config.json",
        "vision-lora/adapter_model.safetensors",
    }
    assert sum(map(len, files.values())) < 20e6


def test_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(folder, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        before = torch.get_rng_state()
        again = write_phi4_multimodal(tmp_path / "again")
        assert torch.equal(torch.get_rng_state(), before)
    assert contents(again) == contents(folder)


def test_another_seed_gives_other_weights_and_the_same_settings(folder, tmp_path):
    ours, theirs = contents(folder), contents(write_phi4_multimodal(tmp_path / "other", seed=1))
    assert {name for name in ours if ours[name] != theirs[name]} == {
        "model.safetensors",
        "vision-lora/adapter_model.safetensors",
    }


def test_no_file_names_a_path_of_this_machine(folder):
    for name, content in contents(folder).items():
        assert str(ROOT).encode() not in content, name
        assert str(folder).encode() not in content, name


def test_arguments_reach_the_config(tmp_path):
    written = write_phi4_multimodal(tmp_path / "x", layers=3, original_max_position_embeddings=600, lora=False)
    config = json.loads((written / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["original_max_position_embeddings"] == 600
    assert config["rope_parameters"]["original_max_position_embeddings"] == 600
    assert not (written / "vision-lora").exists()


def test_weights_are_bfloat16_and_fit_the_class(folder):
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    loaded: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, output_loading_info=True)
    report = loaded[1]
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_no_norm_or_bias_is_neutral(folder):
    for name, tensor in load_file(folder / "model.safetensors").items():
        vectors = tensor.float().flatten()
        if "norm" in name or name.endswith("bias"):
            assert (vectors != 0).all(), name
            assert vectors.unique().numel() > 1, name


def test_embedding_is_zero_exactly_where_no_token_has_the_id(folder, tokenizer):
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    filled = embedding.ne(0).any(dim=1).nonzero().flatten().tolist()
    assert embedding.shape[0] == 200064
    assert filled == sorted(tokenizer.get_vocab().values())


# tokens and prompt


def test_tokenizer_and_processor_hold_the_published_ids(processor, tokenizer):
    assert isinstance(processor, Phi4MultimodalProcessor)
    for held in (tokenizer, processor.tokenizer):
        assert set(held.added_tokens_decoder) == SPECIAL_IDS
        names = (held.bos_token, held.eos_token, held.pad_token, held.unk_token)
        assert set(names) == {"<|endoftext|>"}
        assert held.pad_token_id == ENDOFTEXT
        assert held.model_max_length == 131072
    assert processor.image_token_id == IMAGE
    assert processor.audio_token_id == AUDIO


@needs_facts
def test_special_tokens_are_the_published_ones(tokenizer):
    published = json.loads((FACTS / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    flags = ("content", "lstrip", "rstrip", "normalized", "single_word", "special")
    ours = {
        str(token_id): {flag: getattr(token, flag) for flag in flags}
        for token_id, token in tokenizer.added_tokens_decoder.items()
    }
    assert ours == published


@needs_facts
@pytest.mark.parametrize("generation", [True, False])
@pytest.mark.parametrize("tools", [{}, {"tools": "[]"}, {"tools": None}])
def test_chat_template_renders_as_the_published_one(tokenizer, generation, tools):
    published = json.loads((FACTS / "tokenizer_config.json").read_text())["chat_template"]
    messages = [
        {"role": "system", "content": "Be brief.", **tools},
        {"role": "user", "content": "<|image_1|> Is it\n red?  "},
        {"role": "assistant", "content": "No."},
    ]
    options = {"tokenize": False, "add_generation_prompt": generation}
    ours = tokenizer.apply_chat_template(messages, **options)
    assert ours == tokenizer.apply_chat_template(messages, chat_template=published, **options)


@needs_facts
def test_config_keeps_the_published_values(folder):
    published = json.loads((FACTS / "config.json").read_text())
    ours = json.loads((folder / "config.json").read_text())
    keys = ("vocab_size", "max_position_embeddings", "original_max_position_embeddings", "sliding_window")
    keys += ("rms_norm_eps", "tie_word_embeddings", "bos_token_id", "pad_token_id", "hidden_act")
    assert {key: ours[key] for key in keys} == {key: published[key] for key in keys}
    rope = ours["rope_parameters"]
    assert rope["partial_rotary_factor"] == published["partial_rotary_factor"]
    assert rope["rope_theta"] == published["rope_theta"]
    assert set(rope["long_factor"]) <= set(published["rope_scaling"]["long_factor"])
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == json.loads((FACTS / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.parametrize(("size", "tokens"), [((448, 448), 545), ((896, 448), 801), ((64, 64), 545)])
def test_prompt_has_the_published_form(encode, tokenizer, size, tokens):
    inputs = encode(Image.new("RGB", size, "red"), "What is this?")
    question = tokenizer.encode("What is this?")
    assert inputs["input_ids"][0].tolist() == [USER, *[IMAGE] * tokens, *question, END, ASSISTANT]
    assert inputs["image_pixel_values"].shape[-2:] == (448, 448)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_encoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


# what the numbers depend on


def test_layers_differ(red_states, last_image):
    for position in (last_image, -1):
        for layer in range(1, LAYERS):
            assert relative(red_states[layer, position], red_states[layer - 1, position]) > 0.1


def test_positions_differ(red_states, last_image):
    for layer in range(LAYERS):
        state = red_states[layer]
        assert relative(state[last_image - 1], state[last_image]) > 0.1
        assert relative(state[last_image], state[-1]) > 0.1
        line_before = state[last_image - 17]  # the same separator, one line of 16 patches and itself earlier
        assert relative(line_before, state[last_image]) > 0.05


def test_images_and_questions_change_the_states(model, encode, red_states, last_image):
    red, blue, *_ = pictures()
    other_image = states(model, encode(blue, QUESTIONS[0]))[0]
    other_question = states(model, encode(red, QUESTIONS[1]))[0]
    for layer in range(LAYERS):
        assert relative(other_image[layer, last_image], red_states[layer, last_image]) > 0.1
        assert relative(other_image[layer, -1], red_states[layer, -1]) > 0.1
        assert relative(other_question[layer, -1], red_states[layer, -1]) > 0.1


def test_lora_changes_the_states_and_touches_the_decoder_only(folder, model, red_inputs, red_states):
    adapted = {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}
    linear = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert adapted == {f"model.layers.{layer}.{name}" for layer in range(LAYERS) for name in linear}
    stored = load_file(folder / "vision-lora" / "adapter_model.safetensors")
    for name, tensor in stored.items():
        held = model.get_parameter(name.removeprefix("base_model.model.").replace(".weight", ".vision.weight"))
        assert torch.equal(held, tensor.float()), name
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    without = states(model, red_inputs)[0]
    for layer in layers:
        layer.enable_adapters(True)
    for layer in range(LAYERS):
        assert relative(without[layer, -1], red_states[layer, -1]) > 0.1


def test_long_and_short_rotary_factors_differ(model, red_inputs, red_states, last_image, monkeypatch):
    monkeypatch.setitem(model.config.rope_parameters, "original_max_position_embeddings", 512)
    long = states(model, red_inputs)[0]
    for layer in range(1, LAYERS):
        assert relative(long[layer, -1], red_states[layer, -1]) > 0.1
        assert relative(long[layer, last_image], red_states[layer, last_image]) > 0.1


def test_causal_vision_tower_shows(model, red_inputs, red_states, last_image, monkeypatch):
    for layer in tower_layers(model):
        monkeypatch.setattr(layer.self_attn, "is_causal", True)
    causal = states(model, red_inputs)[0]
    assert relative(causal[-1, last_image], red_states[-1, last_image]) > 0.1
    assert relative(causal[-1, -1], red_states[-1, -1]) > 0.1


def test_padding_and_neighbours_change_nothing_in_float32(model, processor, encode):
    images = [pictures()[index] for index in (0, 2, 4)]
    texts = [f"<|user|><|endoftext10|>{question}<|end|><|assistant|>" for question in QUESTIONS[:3]]
    batch = dict(processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt"))
    mask = batch["attention_mask"]
    assert not mask.all()
    together = states(model, batch | {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)})
    for row, (image, question) in enumerate(zip(images, QUESTIONS, strict=False)):
        alone = states(model, encode(image, question))[0]
        assert relative(together[row, -1, mask[row].bool()], alone[-1]) < 2e-6
        assert relative(together[row, -1, -1], alone[-1, -1]) < 2e-6


@pytest.mark.slow
def test_answers_stop_at_many_lengths_and_differ(model, encode):
    answers = []
    for image in pictures():
        for question in QUESTIONS:
            inputs = encode(image, question)
            generated = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0]
            answers.append(tuple(generated[inputs["input_ids"].shape[1] :].tolist()))
    stopped = [len(answer) for answer in answers if answer[-1] in (END, ENDOFTEXT)]
    assert len(set(map(len, answers))) >= 4
    assert sum(2 <= length <= 20 for length in stopped) >= 5
    assert len(answers) - len(stopped) >= 3
    assert len(set(answers)) >= 28
    assert not {IMAGE, AUDIO} & {token for answer in answers for token in answer}
