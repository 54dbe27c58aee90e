"""The published config.json to transformers' config: every field used, fixed, or named as saying nothing."""

import copy
import json
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Phi4MultimodalConfig
from transformers.models.phi4_multimodal.modeling_phi4_multimodal import Phi4MultimodalRotaryEmbedding

from midsight.checkpoints.phi4mm.config import IGNORED, lora_scale, native_config
from midsight.errors import MidsightError
from support.folders import FACTS, needs_facts, said_by

pytestmark = needs_facts

TRAINING_ONLY = (
    "audio_processor.config.activation_checkpointing",
    "embd_layer.audio_embd_layer.enable_gradient_checkpointing",
    "embd_layer.image_embd_layer.enable_gradient_checkpointing",
    "speech_lora",
    "vision_lora.dp",
    "vision_lora.layer",
)
"""Fields, or everything under them, that cannot change what an image prompt computes from given tensors."""
WITHOUT_MEANING = (*IGNORED, *TRAINING_ONLY)


def published():
    return json.loads((FACTS / "config.json").read_text())


def shapes():
    return {name: tuple(shape) for name, shape in json.loads((FACTS / "tensor_shapes.json").read_text()).items()}


PUBLISHED, SHAPES = (published(), shapes()) if FACTS.is_dir() else ({}, {})


def read(raw):
    """Everything that midsight takes from a published config."""
    return native_config(raw, SHAPES).to_dict(), lora_scale(raw)


def places(value, path=()):
    """Path of every field of every object, and of every element of a list."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(raw, path):
    for key in path:
        raw = raw[key]
    return raw


def field_of(path):
    """The field's dotted name; an element of a list goes by the list's."""
    return ".".join(key for key in path if isinstance(key, str))


def means_nothing(path):
    return any(field_of(path) == name or field_of(path).startswith(f"{name}.") for name in WITHOUT_MEANING)


LEAVES = [path for path in places(PUBLISHED) if not isinstance(at(PUBLISHED, path), dict | list)]
OBJECTS = [(), *(path for path in places(PUBLISHED) if isinstance(at(PUBLISHED, path), dict))]


def changed(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return {"bfloat16": "float16", "swish": "relu", "silu": "gelu"}.get(value, f"{value}x")
    return value + 1


def test_every_field_is_what_transformers_expects_of_the_published_model():
    """Vision and audio parts are the defaults of transformers' classes, which were written for this model."""
    config: Any = native_config(PUBLISHED, SHAPES)
    expected = {
        "architectures": ["Phi4MultimodalForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 199999,
        "dtype": "bfloat16",
        "embd_pdrop": 0.0,
        "eos_token_id": [199999],
        "hidden_act": "silu",
        "hidden_size": 3072,
        "initializer_range": 0.02,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "num_attention_heads": 24,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096,
        "pad_token_id": 199999,
        "resid_pdrop": 0.0,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * 48,
            "long_factor": PUBLISHED["rope_scaling"]["long_factor"],
        },
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 200064,
    }
    ours, default = config.to_dict(), Phi4MultimodalConfig().to_dict()
    settled = {*expected, "audio_config", "vision_config"}
    assert {name: ours[name] for name in expected} == expected
    assert {n: v for n, v in ours.items() if n not in settled} == {n: v for n, v in default.items() if n not in settled}
    assert len(PUBLISHED["rope_scaling"]["long_factor"]) == 48
    assert bfloat16_aside(ours["vision_config"]) == bfloat16_aside(default["vision_config"])
    vision = config.vision_config
    assert (vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers) == (1152, 4304, 27)
    assert (vision.num_attention_heads, vision.image_size, vision.patch_size, vision.crop_size) == (16, 448, 14, 448)
    assert (vision.feature_layer, vision.hidden_act, vision.layer_norm_eps) == (-2, "gelu_pytorch_tanh", 1e-6)
    assert bfloat16_aside(ours["audio_config"]) == {**bfloat16_aside(default["audio_config"]), "bias_max_distance": 500}
    assert config.audio_config.num_blocks == 24
    assert lora_scale(PUBLISHED).scale == 2.0


def bfloat16_aside(part):
    assert part["dtype"] in (None, "bfloat16")
    return {name: value for name, value in part.items() if name != "dtype"}


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: ".".join(map(str, path)))
def test_another_value_changes_the_model_or_is_refused_by_name(path):
    raw = copy.deepcopy(PUBLISHED)
    at(raw, path[:-1])[path[-1]] = changed(at(raw, path))
    said = said_by(read, raw)
    if said is None:
        assert (read(raw) == read(PUBLISHED)) == means_nothing(path)
    else:
        assert field_of(path).split(".")[-1] in said
        assert not means_nothing(path)


@pytest.mark.parametrize("wrong", [None, "", "many", -1, 0, [], {}, [{}], 10**30, 1e400], ids=repr)
def test_a_value_of_another_kind_changes_the_model_or_is_refused_in_one_sentence(wrong):
    """Never passed over, and never answered with an exception of a library, which names no file and no fix."""
    unclear = {}
    for path in LEAVES:
        if means_nothing(path) or (type(path[-1]) is int and path[-1] > 0) or at(PUBLISHED, path) == wrong:
            continue
        raw = copy.deepcopy(PUBLISHED)
        at(raw, path[:-1])[path[-1]] = wrong
        try:
            if read(raw) == read(PUBLISHED):
                unclear[field_of(path)] = "passed over"
        except MidsightError:
            continue
        except Exception as error:
            unclear[field_of(path)] = type(error).__name__
    assert unclear == {}


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: ".".join(path) or "top")
@pytest.mark.parametrize("value", [1, {}, {"inside": 1}], ids=repr)
def test_a_field_that_is_not_known_is_refused_by_name_at_every_level(path, value):
    raw = copy.deepcopy(PUBLISHED)
    at(raw, path)["surprise"] = value
    if means_nothing(path):
        assert read(raw) == read(PUBLISHED)
        return
    with pytest.raises(MidsightError, match=f"{field_of((*path, 'surprise'))}.*does not know"):
        read(raw)


@pytest.mark.parametrize(
    "path", [path for path in places(PUBLISHED) if isinstance(path[-1], str)], ids=lambda path: ".".join(path)
)
def test_a_field_that_is_missing_is_refused_by_name(path):
    raw = copy.deepcopy(PUBLISHED)
    del at(raw, path[:-1])[path[-1]]
    if means_nothing(path) and field_of(path) not in TRAINING_ONLY:
        return
    with pytest.raises(MidsightError, match=f"lacks the field {field_of(path)}"):
        read(raw)


def published_rotation(factors_name):
    """Frequencies and scale of the published modeling code, float64 [48], and one number.

    modeling_phi4mm.py, Phi4MMSuScaledRotaryEmbedding: 1 / (factor * theta ** (2 i / 96)), and
    sqrt(1 + ln(131072 / 4096) / ln(4096)).
    """
    factors = np.array(PUBLISHED["rope_scaling"][f"{factors_name}_factor"])
    frequencies = 1 / (factors * 10000.0 ** (np.arange(0, 96, 2) / 96))
    return frequencies, np.sqrt(1 + np.log(131072 / 4096) / np.log(4096))


@pytest.mark.parametrize(("factors_name", "tokens"), [("short", 4096), ("long", 4097)])
def test_rotary_frequencies_are_those_of_the_published_code(factors_name, tokens):
    rotary = Phi4MultimodalRotaryEmbedding(native_config(PUBLISHED, SHAPES))
    cos, sin = rotary(torch.zeros(1), torch.arange(tokens)[None])
    frequencies, scale = published_rotation(factors_name)
    other, _ = published_rotation("long" if factors_name == "short" else "short")
    assert np.abs(frequencies / other - 1).max() > 0.9
    np.testing.assert_allclose(rotary.inv_freq.numpy(), frequencies, rtol=1e-6)
    assert rotary.attention_scaling == pytest.approx(scale, abs=1e-12)
    assert scale == pytest.approx(1.1902380714238083)
    angles = np.arange(tokens)[:, None] * rotary.inv_freq.numpy().astype(np.float64)
    for ours, wave in ((cos, np.cos), (sin, np.sin)):
        np.testing.assert_allclose(ours[0].numpy(), scale * np.tile(wave(angles), 2), atol=1e-3)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("img_processor.embeddings.patch_embedding.weight", "img_processor"),
        ("img_processor.embeddings.position_embedding.weight", "img_processor"),
        ("model.layers.0.self_attn.qkv_proj.base_layer.weight", "qkv_proj"),
    ],
)
@pytest.mark.parametrize("shape", [(), (8,), (8, 8, 8)])
def test_a_tensor_that_sizes_are_read_from_may_have_any_shape(name, said, shape):
    full = next(stored for stored in SHAPES if stored.endswith(name))
    with pytest.raises(MidsightError, match=said):
        native_config(PUBLISHED, {**SHAPES, full: shape})
