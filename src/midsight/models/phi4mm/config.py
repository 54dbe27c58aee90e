"""The published config.json to transformers' Phi4MultimodalConfig, every field accounted for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import Phi4MultimodalConfig

from midsight.errors import MidsightError

MODEL_TYPE = "phi4mm"
VISION_TOWER = "model.embed_tokens_extend.image_embed.img_processor"
VISION_HEADS = 16
"""Heads of the published encoder (SigLIP so400m); no file of the folder says it, and no shape shows it."""

CARRIED = (
    "attention_dropout",
    "bos_token_id",
    "embd_pdrop",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "pad_token_id",
    "resid_pdrop",
    "rms_norm_eps",
    "sliding_window",
    "tie_word_embeddings",
    "use_cache",
    "vocab_size",
)
"""Fields that both configs have under one name."""

TRANSLATED = ("eos_token_id", "partial_rotary_factor", "rope_scaling", "rope_theta", "torch_dtype")
IGNORED = ("_attn_implementation", "_name_or_path", "auto_map", "transformers_version")
"""Fields that say nothing about the numbers; `auto_map` names the remote code, which is never run."""

FIXED: Mapping[str, Any] = {
    "architectures": ["Phi4MMForCausalLM"],
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "model_type": MODEL_TYPE,
    "embd_layer.embedding_cls": "image_audio",
    "embd_layer.image_embd_layer.embedding_cls": "tune_image",
    "embd_layer.image_embd_layer.hd_transform_order": "sub_glb",
    "embd_layer.image_embd_layer.image_token_compression_cls": "avg_pool_2d",
    "embd_layer.image_embd_layer.projection_cls": "mlp",
    "embd_layer.image_embd_layer.use_hd_transform": True,
    "embd_layer.image_embd_layer.with_learnable_separator": True,
    "embd_layer.audio_embd_layer.embedding_cls": "audio",
    "embd_layer.audio_embd_layer.projection_cls": "mlp",
    "embd_layer.audio_embd_layer.use_conv_downsample": False,
    "embd_layer.audio_embd_layer.use_qformer": False,
    "audio_processor.name": "cascades",
    "audio_processor.config.batch_norm": False,
    "audio_processor.config.bias_in_glu": True,
    "audio_processor.config.causal": True,
    "audio_processor.config.cnn_layer_norm": True,
    "audio_processor.config.ext_pw_kernel_size": 1,
    "audio_processor.config.input_layer": "nemo_conv",
    "audio_processor.config.relative_attention_bias_args.type": "t5",
    "rope_scaling.type": "longrope",
}
"""What transformers' class builds in; another value is another model."""

AUDIO = {
    "activation": "activation",
    "attention_dim": "hidden_size",
    "attention_heads": "num_attention_heads",
    "chunk_size": "chunk_size",
    "conv_activation": "conv_activation",
    "conv_glu_type": "conv_glu_type",
    "depthwise_multiplier": "depthwise_multiplier",
    "depthwise_seperable_out_channel": "depthwise_separable_out_channel",
    "dropout_rate": "dropout_rate",
    "ext_pw_out_channel": "ext_pw_out_channel",
    "input_size": "input_size",
    "kernel_size": "kernel_size",
    "left_chunk": "left_chunk",
    "linear_units": "intermediate_size",
    "nemo_conv_settings.conv_channels": "nemo_conv_channels",
    "num_blocks": "num_blocks",
    "relative_attention_bias_args.t5_bias_max_distance": "bias_max_distance",
    "time_reduction": "time_reduction",
}
"""Field of `audio_processor.config` to field of transformers' audio config."""

ELSEWHERE = (
    "audio_processor.config.activation_checkpointing",
    "audio_processor.config.encoder_embedding_config.input_size",
    "embd_layer.audio_embd_layer.compression_rate",
    "embd_layer.audio_embd_layer.downsample_rate",
    "embd_layer.audio_embd_layer.enable_gradient_checkpointing",
    "embd_layer.image_embd_layer.crop_size",
    "embd_layer.image_embd_layer.enable_gradient_checkpointing",
    "rope_scaling.long_factor",
    "rope_scaling.short_factor",
    "speech_lora",
    "vision_lora",
)
"""Fields, or everything under them, that are read or checked by name below, or concern training only."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of the folder, by its published name."""


@dataclass(frozen=True)
class LoraScale:
    """What a LoRA's numbers are multiplied by."""

    rank: int
    """Rows of A, columns of B."""
    alpha: float
    """Numerator of the scale."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def lora_scale(raw: Mapping[str, Any]) -> LoraScale:
    """Rank and alpha of the vision LoRA."""
    lora = raw["vision_lora"]
    return LoraScale(int(lora["r"]), float(lora["lora_alpha"]))


def native_config(raw: Mapping[str, Any], shapes: Shapes) -> Phi4MultimodalConfig:
    """Transformers' config for a published config.json; the encoder's sizes are read off its tensors.

    Raises MidsightError that names the field: one that is unknown, missing, or contradicts another
    or the tensors.
    """
    check_fields(raw)
    audio = raw["audio_processor"]["config"]
    image_layer, audio_layer = (raw["embd_layer"][name] for name in ("image_embd_layer", "audio_embd_layer"))
    vision_config = vision_sizes(shapes)
    agree("embd_layer.image_embd_layer.crop_size", image_layer["crop_size"], vision_config["image_size"])
    agree("embd_layer.audio_embd_layer.compression_rate", audio_layer["compression_rate"], audio["time_reduction"])
    agree(
        "audio_processor.config.encoder_embedding_config.input_size",
        _at(audio, "encoder_embedding_config.input_size"),
        audio["input_size"],
    )
    rope = raw["rope_scaling"]
    head_size = raw["hidden_size"] // raw["num_attention_heads"]
    for name in ("short_factor", "long_factor"):
        agree(f"rope_scaling.{name} (length)", len(rope[name]), int(head_size * raw["partial_rotary_factor"]) // 2)
    check_decoder(raw, shapes)
    return Phi4MultimodalConfig(
        **{name: raw[name] for name in CARRIED},
        architectures=["Phi4MultimodalForCausalLM"],
        dtype=raw["torch_dtype"],
        eos_token_id=[raw["eos_token_id"]],
        rope_parameters={
            "rope_type": rope["type"],
            "rope_theta": raw["rope_theta"],
            "partial_rotary_factor": raw["partial_rotary_factor"],
            "original_max_position_embeddings": raw["original_max_position_embeddings"],
            "short_factor": rope["short_factor"],
            "long_factor": rope["long_factor"],
        },
        vision_config={**vision_config, "crop_size": image_layer["crop_size"]},
        audio_config={native: _at(audio, name) for name, native in AUDIO.items()}
        | {"downsample_rate": audio_layer["downsample_rate"]},
    )


def check_fields(raw: Mapping[str, Any]) -> None:
    """Raises MidsightError for a field that is unknown, missing, or fixed to another value."""
    known = {*CARRIED, *TRANSLATED, *IGNORED, *FIXED, *ELSEWHERE, *(f"audio_processor.config.{name}" for name in AUDIO)}
    for field in _leaves(raw):
        if not any(field == name or field.startswith(f"{name}.") for name in known):
            raise MidsightError(
                f"config.json has the field {field}, which midsight does not know; it may change the numbers."
            )
    for field in sorted(
        {*CARRIED, *TRANSLATED, *FIXED, *ELSEWHERE} - {"audio_processor.config.activation_checkpointing"}
    ):
        _at(raw, field)
    for field in AUDIO:
        _at(raw, f"audio_processor.config.{field}")
    for field, value in FIXED.items():
        agree(field, _at(raw, field), value)


def check_decoder(raw: Mapping[str, Any], shapes: Shapes) -> None:
    """Raises MidsightError where the decoder's tensors contradict its head counts and widths."""
    width, heads, kv_heads = raw["hidden_size"], raw["num_attention_heads"], raw["num_key_value_heads"]
    agree("hidden_size (a multiple of num_attention_heads)", width % heads, 0)
    rows = (heads + 2 * kv_heads) * (width // heads)
    name = "model.layers.0.self_attn.qkv_proj.base_layer.weight"
    if name in shapes:
        agree("num_attention_heads and num_key_value_heads (rows of qkv_proj)", rows, shapes[name][0])


def vision_sizes(shapes: Shapes) -> dict[str, int]:
    """The vision encoder's sizes, read off its tensors' shapes."""
    try:
        width, channels, patch, _ = shapes[f"{VISION_TOWER}.embeddings.patch_embedding.weight"]
        positions, _ = shapes[f"{VISION_TOWER}.embeddings.position_embedding.weight"]
        mlp_width, _ = shapes[f"{VISION_TOWER}.encoder.layers.0.mlp.fc1.weight"]
    except KeyError as error:
        raise MidsightError(
            f"The folder has no tensor {error.args[0]}; it is no whole {MODEL_TYPE}, download it again."
        ) from None
    layers = {name.split(".")[6] for name in shapes if name.startswith(f"{VISION_TOWER}.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": len(layers),
        "num_attention_heads": VISION_HEADS,
        "num_channels": channels,
        "image_size": math.isqrt(positions) * patch,
        "patch_size": patch,
    }


def agree(field: str, value: Any, expected: Any) -> None:
    """Raises MidsightError where a field's value is not the expected one."""
    if value != expected:
        raise MidsightError(
            f"config.json says {value!r} for {field} where {expected!r} fits; midsight cannot tell which is right."
        )


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> list[str]:
    leaves: list[str] = []
    for name, value in raw.items():
        leaves += _leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return leaves


def _at(raw: Mapping[str, Any], field: str) -> Any:
    value: Any = raw
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise MidsightError(f"config.json lacks the field {field}; download it again.")
        value = value[name]
    return value
