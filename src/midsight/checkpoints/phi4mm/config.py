"""From the published config.json to transformers' Phi4MultimodalConfig; every field is accounted for."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import Phi4MultimodalConfig

from midsight.errors import MidsightError, ModelFileError, quoted
from midsight.families.phi4_multimodal import VISION_TOWER

MODEL_TYPE = "phi4mm"
FILE = Path("config.json")
"""Where the fields are, inside the model's folder."""
DTYPES = ("bfloat16", "float16", "float32")
LARGEST = 2**31
"""Largest number that a field may have."""
VISION_HEADS = 16
"""Attention heads of the published encoder (SigLIP so400m); neither a file nor a tensor's shape says how many."""

Kind = Literal["size", "id", "integer", "number", "text", "flag"]
"""The kind of a field's value: integer from 1, integer from 0, any integer, number from 0, text, or boolean."""

CARRIED: Mapping[str, Kind] = {
    "attention_dropout": "number",
    "bos_token_id": "id",
    "embd_pdrop": "number",
    "hidden_act": "text",
    "hidden_size": "size",
    "initializer_range": "number",
    "intermediate_size": "size",
    "max_position_embeddings": "size",
    "num_attention_heads": "size",
    "num_hidden_layers": "size",
    "num_key_value_heads": "size",
    "original_max_position_embeddings": "size",
    "pad_token_id": "id",
    "resid_pdrop": "number",
    "rms_norm_eps": "number",
    "sliding_window": "size",
    "use_cache": "flag",
    "vocab_size": "size",
}
"""Fields that have the same name in both configs."""

TRANSLATED: Mapping[str, Kind] = {
    "audio_processor.config.encoder_embedding_config.input_size": "size",
    "embd_layer.audio_embd_layer.compression_rate": "size",
    "embd_layer.audio_embd_layer.downsample_rate": "size",
    "embd_layer.image_embd_layer.crop_size": "size",
    "eos_token_id": "id",
    "partial_rotary_factor": "number",
    "rope_theta": "number",
    "torch_dtype": "text",
    "vision_lora.lora_alpha": "number",
    "vision_lora.r": "size",
}
"""Fields that have another name in transformers' config, or are only compared with other fields."""

ROPE_FACTORS = ("rope_scaling.long_factor", "rope_scaling.short_factor")
IGNORED = ("_attn_implementation", "_name_or_path", "auto_map", "transformers_version")
"""Fields that do not change the numbers; `auto_map` names the remote code, which is never run."""
TRAINING_ONLY = (
    "audio_processor.config.activation_checkpointing",
    "embd_layer.audio_embd_layer.enable_gradient_checkpointing",
    "embd_layer.image_embd_layer.enable_gradient_checkpointing",
    "speech_lora",
    "vision_lora.dp",
    "vision_lora.layer",
)
"""Fields, with everything under them, that do not change what an image prompt computes from given tensors."""

FIXED: Mapping[str, Any] = {
    "architectures": ["Phi4MMForCausalLM"],
    "attention_bias": False,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "model_type": MODEL_TYPE,
    "tie_word_embeddings": True,
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
"""Values that are built into transformers' class; another value means another model."""

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
"""From a field of `audio_processor.config` to a field of transformers' audio config."""
AUDIO_KINDS: Mapping[str, Kind] = {
    "activation": "text",
    "chunk_size": "integer",
    "conv_activation": "text",
    "conv_glu_type": "text",
    "dropout_rate": "number",
    "left_chunk": "integer",
}
"""Kinds of the fields in AUDIO that are not sizes."""

HARMLESS = frozenset(
    (
        "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash", "add_cross_attention",
        "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward", "decoder_start_token_id",
        "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label",
        "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
        "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
        "output_scores", "prefix", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
        "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
        "tokenizer_class", "top_k", "top_p", "torchscript", "trust_remote_code", "typical_p", "unsloth_fixed",
        "unsloth_version", "use_bfloat16",
    )
)  # fmt: skip
"""Fields of transformers' own config classes, and of training tools, that say nothing about the hidden states.

transformers 4 writes some of them. It reads generation settings from generation_config.json, as midsight does."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor, by name."""


@dataclass(frozen=True)
class LoraScale:
    """Rank and alpha of a LoRA, which give its scale."""

    rank: int
    """Number of rows of A, and of columns of B."""
    alpha: float
    """The scale is alpha / rank."""

    @property
    def scale(self) -> float:
        """The factor of B A."""
        return self.alpha / self.rank


def lora_scale(raw: Mapping[str, Any]) -> LoraScale:
    """Rank and alpha of the vision LoRA."""
    lora = raw["vision_lora"]
    return LoraScale(int(lora["r"]), float(lora["lora_alpha"]))


def normalise(raw: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields that say something about the model, by their published names; and notes about the others."""
    found = sorted(name for name in raw if name in HARMLESS)
    kept = {name: value for name, value in raw.items() if name not in HARMLESS}
    if "torch_dtype" not in kept and "dtype" in kept:  # the name in newer versions of transformers
        kept["torch_dtype"] = kept.pop("dtype")
    if kept.get("architectures") in (None, []):
        kept["architectures"] = FIXED["architectures"]
    if not found:
        return kept, ()
    return kept, (f"config.json has fields that say nothing about the numbers, and are ignored: {', '.join(found)}.",)


def native_config(raw: Mapping[str, Any], shapes: Shapes) -> Phi4MultimodalConfig:
    """Transformers' config for a published config.json; the vision encoder's sizes come from the tensors' shapes.

    Raises MidsightError for a field that is unknown or missing, or that contradicts another field or the tensors; the
    error names the field.
    """
    validate_fields(raw)
    vision_config = vision_sizes(shapes)
    validate_encoders(raw, vision_config)
    validate_decoder(raw, shapes)
    rope, audio = raw["rope_scaling"], raw["audio_processor"]["config"]
    carried: dict[str, Any] = {
        name: float(raw[name]) if kind == "number" else raw[name] for name, kind in CARRIED.items()
    }
    return Phi4MultimodalConfig(
        **carried,
        tie_word_embeddings=True,
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
        vision_config={**vision_config, "crop_size": _at(raw, "embd_layer.image_embd_layer.crop_size")},
        audio_config={native: _at(audio, name) for name, native in AUDIO.items()}
        | {"downsample_rate": _at(raw, "embd_layer.audio_embd_layer.downsample_rate")},
    )


def validate_fields(raw: Mapping[str, Any]) -> None:
    """Raises MidsightError for a field that is unknown or missing, or whose value is not one that it can have."""
    kinds: dict[str, Kind] = {
        **CARRIED,
        **TRANSLATED,
        **{f"audio_processor.config.{name}": AUDIO_KINDS.get(name, "size") for name in AUDIO},
    }
    for field, value in FIXED.items():
        require_equal(field, _at(raw, field), value)
    for field, kind in kinds.items():
        validate_kind(field, _at(raw, field), kind)
    for field in ROPE_FACTORS:
        factors = _at(raw, field)
        for factor in factors if isinstance(factors, list) and factors else [factors]:
            validate_kind(field, factor, "number")
    for field in TRAINING_ONLY:
        _at(raw, field)
    known = {*kinds, *FIXED, *ROPE_FACTORS}
    ignored = (*IGNORED, *TRAINING_ONLY)
    for field in _leaves(raw):
        if field not in known and not any(field == name or field.startswith(f"{name}.") for name in ignored):
            raise MidsightError(
                f"config.json has the field {quoted(field)}, which midsight does not know; remove it if it does not "
                "change the numbers."
            )


def validate_kind(field: str, value: Any, kind: Kind) -> None:
    """Raises MidsightError for a value of another kind."""
    whole = type(value) is int and -LARGEST <= value <= LARGEST
    fits = {
        "size": whole and value >= 1,
        "id": whole and value >= 0,
        "integer": whole,
        "number": (whole and value >= 0) or (type(value) is float and 0 <= value <= LARGEST),
        "text": type(value) is str and value != "",
        "flag": type(value) is bool,
    }
    if not fits[kind] or (field == "torch_dtype" and value not in DTYPES):
        raise ModelFileError(f"config.json says {reprlib.repr(value)} for {field}, which is not a valid value", FILE)


def validate_encoders(raw: Mapping[str, Any], vision_config: Mapping[str, int]) -> None:
    """Raises MidsightError if fields about images or sound contradict each other, or the vision encoder's tensors."""
    crop_size = "embd_layer.image_embd_layer.crop_size"
    require_equal(crop_size, _at(raw, crop_size), vision_config["image_size"])
    for field, other in (
        ("embd_layer.audio_embd_layer.compression_rate", "audio_processor.config.time_reduction"),
        ("audio_processor.config.encoder_embedding_config.input_size", "audio_processor.config.input_size"),
    ):
        require_equal(f"{field} (compared with {other})", _at(raw, field), _at(raw, other))


def validate_decoder(raw: Mapping[str, Any], shapes: Shapes) -> None:
    """Raises MidsightError if the decoder's widths and numbers of heads contradict its tensors or rotary factors."""
    width, heads, kv_heads = raw["hidden_size"], raw["num_attention_heads"], raw["num_key_value_heads"]
    require_equal("hidden_size (a multiple of num_attention_heads)", width % heads, 0)
    rows = (heads + 2 * kv_heads) * (width // heads)
    name = "model.layers.0.self_attn.qkv_proj.base_layer.weight"
    if name in shapes:
        require_equal(
            "hidden_size, num_attention_heads and num_key_value_heads (rows of qkv_proj)",
            [rows],
            list(shapes[name][:1]),
        )
    rotary_size = int(width // heads * raw["partial_rotary_factor"])
    for field in ROPE_FACTORS:
        require_equal(
            f"the length of {field} (from hidden_size, num_attention_heads and partial_rotary_factor)",
            len(_at(raw, field)),
            rotary_size // 2,
        )


def vision_sizes(shapes: Shapes) -> dict[str, int]:
    """The vision encoder's sizes, from the shapes of its tensors."""
    try:
        width, channels, patch, _ = shapes[f"{VISION_TOWER}.embeddings.patch_embedding.weight"]
        positions, _ = shapes[f"{VISION_TOWER}.embeddings.position_embedding.weight"]
        mlp_width, _ = shapes[f"{VISION_TOWER}.encoder.layers.0.mlp.fc1.weight"]
    except KeyError as error:
        raise ModelFileError(
            f"The folder lacks the tensor {error.args[0]}, so it is not a complete {MODEL_TYPE}"
        ) from None
    except ValueError:
        raise ModelFileError(
            f"Tensors of the embeddings or the mlp of {VISION_TOWER} have another number of dimensions than the "
            "published encoder's"
        ) from None
    in_layers = re.compile(rf"{re.escape(VISION_TOWER)}\.encoder\.layers\.(\d+)\.")
    layers = [int(found[1]) for found in map(in_layers.match, shapes) if found]
    return {
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": 1 + min(max(layers), len(layers)),  # a module is made for each
        "num_attention_heads": VISION_HEADS,
        "num_channels": channels,
        "image_size": math.isqrt(positions) * patch,
        "patch_size": patch,
    }


def require_equal(field: str, value: Any, expected: Any) -> None:
    """Raises MidsightError if a field's value is not the expected one."""
    if value != expected or type(value) is not type(expected):
        raise MidsightError(
            f"config.json says {reprlib.repr(value)} for {field}, but only {expected!r} fits; correct config.json."
        )


def _leaves(raw: Mapping[str, Any]) -> list[str]:
    """The names of all fields in their order, however deep they are."""
    left: list[tuple[str, Any]] = [*reversed([*raw.items()])]
    leaves: list[str] = []
    while left:
        name, value = left.pop()
        if isinstance(value, Mapping) and value:
            left += [(f"{name}.{inside}", value[inside]) for inside in reversed(value)]
        else:
            leaves.append(name)
    return leaves


def _at(raw: Mapping[str, Any], field: str) -> Any:
    value: Any = raw
    for name in field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ModelFileError(f"config.json lacks the field {field}", FILE)
        value = value[name]
    return value
