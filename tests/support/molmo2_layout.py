"""A Molmo 2 folder in transformers' layout, written anew as AI2 publishes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from support.folders import Tensors, edit_json, edit_tensors, read_json

BLOCK, VISION = r"model.transformer.blocks.\1.", "model.vision_backbone."
RESBLOCK = rf"{VISION}image_vit.transformer.resblocks.\1."
NAMES = {
    r"^model\.language_model\.layers\.(\d+)\.input_layernorm": rf"{BLOCK}attn_norm",
    r"^model\.language_model\.layers\.(\d+)\.post_attention_layernorm": rf"{BLOCK}ff_norm",
    r"^model\.language_model\.layers\.(\d+)\.self_attn\.o_proj": rf"{BLOCK}self_attn.attn_out",
    r"^model\.language_model\.layers\.(\d+)\.mlp\.down_proj": rf"{BLOCK}mlp.ff_out",
    r"^model\.language_model\.layers\.(\d+)\.": BLOCK,
    r"^model\.language_model\.norm": "model.transformer.ln_f",
    r"^model\.vision_tower\.layers\.(\d+)\.layer_norm1": rf"{RESBLOCK}attention_norm",
    r"^model\.vision_tower\.layers\.(\d+)\.layer_norm2": rf"{RESBLOCK}ffn_norm",
    r"^model\.vision_tower\.layers\.(\d+)\.self_attn\.(.)_proj": rf"{RESBLOCK}attention.w\2",
    r"^model\.vision_tower\.layers\.(\d+)\.mlp\.fc": rf"{RESBLOCK}feed_forward.w",
    r"^model\.vision_tower\.": f"{VISION}image_vit.",
    r"^model\.multi_modal_projector\.image_pooling_2d\.(.)_proj": rf"{VISION}image_pooling_2d.w\1",
    r"^model\.multi_modal_projector\.image_projector\.gate_proj": f"{VISION}image_projector.w1",
    r"^model\.multi_modal_projector\.image_projector\.down_proj": f"{VISION}image_projector.w2",
    r"^model\.multi_modal_projector\.image_projector\.up_proj": f"{VISION}image_projector.w3",
}
"""transformers' names to the published ones; the first that fits counts."""
TOGETHER = {
    "self_attn.att_proj.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.ff_proj.weight": ("mlp.up_proj.weight", "mlp.gate_proj.weight"),
}
"""Weights of a decoder layer that are stored as one tensor."""
UNUSED_LAYERS = 2
"""Layers of the encoder that the published config counts and the published files do not have."""


def publish_molmo2(folder: Path) -> Path:
    """Rewrites tensors and settings of the folder; returns it."""
    vocabulary = read_json(folder / "config.json")["text_config"]["vocab_size"]
    edit_tensors(folder / "model.safetensors", lambda tensors: publish_tensors(tensors, vocabulary))
    edit_json(folder / "config.json", publish_config)
    settings = read_json(folder / "processor_config.json")["image_processor"]
    edit_json(folder / "processor_config.json", lambda processor: processor.pop("image_processor"))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def publish_tensors(tensors: Tensors, vocabulary: int) -> None:
    """The tensors under the published names, some of them joined; the embedding is in two parts."""
    layers = {found.group() for name in tensors if (found := re.match(r"model\.language_model\.layers\.\d+\.", name))}
    for layer in layers:
        for together, parts in TOGETHER.items():
            tensors[layer + together] = torch.cat([tensors.pop(layer + part) for part in parts])
    embedding = tensors.pop("model.language_model.embed_tokens.weight")
    native = {*tensors} - {"lm_head.weight"}
    for name in native:
        older = next(re.sub(new, old, name) for new, old in NAMES.items() if re.match(new, name))
        tensors[older] = tensors.pop(name)
    assert not native & {*tensors}
    tensors["model.transformer.wte.embedding"] = embedding[:vocabulary].clone()
    tensors["model.transformer.wte.new_embedding"] = embedding[vocabulary:].clone()


def publish_config(config: dict[str, Any]) -> None:
    """The fields as the published config.json spells them."""
    vision, adapter, text = config.pop("vision_config"), config["adapter_config"], config["text_config"]
    layers = vision["num_hidden_layers"] + UNUSED_LAYERS
    size, patch, positions = (vision.pop(name) for name in ("image_size", "patch_size", "num_position_embeddings"))
    config["vit_config"] = {
        **vision,
        "model_type": "molmo2",
        "num_hidden_layers": layers,
        "image_default_input_size": size,
        "image_patch_size": patch,
        "image_num_pos": positions,
    }
    adapter |= {"model_type": "molmo2", "vit_layers": [one - layers for one in adapter.pop("vision_feature_layer")]}
    rope = text.pop("rope_parameters")
    text |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None,
        "rope_scaling_layers": None,
        "layer_norm_eps": text.pop("rms_norm_eps"),
        "qkv_bias": text.pop("attention_bias"),
        "use_qk_norm": True,
    }
