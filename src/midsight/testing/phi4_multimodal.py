"""A small, complete Phi-4-multimodal checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Generator, Tensor
from transformers import (
    GenerationConfig,
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalImageProcessor,
    Phi4MultimodalProcessor,
    PreTrainedTokenizerFast,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import BIAS_STD, NORM_SPREAD, TOKENIZER, draw_rows, save_weights

ENDOFTEXT_ID = 199999
"""`<|endoftext|>`: the first token of a text, padding, and the second stop token."""
IMAGE_ID = 200010
"""`<|endoftext10|>`, the image token."""
AUDIO_ID = 200011
"""`<|endoftext11|>`, the audio token."""
END_ID = 200020
"""`<|end|>`, the stop token of every turn."""

HIDDEN_SIZE = 32
HEADS = 4
KEY_VALUE_HEADS = 2
MLP_SIZE = 64
VISION_SIZE = 32
VISION_MLP_SIZE = 64
AUDIO_SIZE = 8
LORA_RANK = 4

PUBLISHED_LONG_FACTORS = (5.351743533, 32.03, 47.77)
"""Factors 15, 31 and 47 of the published 48: one from each third of the frequencies, and none is 1."""

LORA_TARGETS = r"model\.layers\.\d+\.((self_attn\.(qkv_proj|o_proj))|(mlp\.(gate_up|down)_proj))"
"""The decoder's linear layers; those of the audio tower, which have the same names, do not match."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' + message['content'] -}}
    {%- if message['role'] == 'system' and message['tools'] is defined and message['tools'] is not none -%}
        {{- '<|tool|>' + message['tools'] + '<|/tool|>' -}}
    {%- endif -%}
    {{- '<|end|>' -}}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else eos_token -}}
"""

END_ROW_SCALE = 3.0
"""Scale of the row of `<|end|>` in embedding and head: large enough that it wins now and then, so answers have many
lengths."""
PLACEHOLDER_ROW_SCALE = 0.01
"""Scale of the rows of image and audio tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.qkv_proj.weight", 1.6),
    ("self_attn.o_proj.weight", 0.3),
    ("mlp.gate_up_proj.weight", 1.5),
    ("mlp.down_proj.weight", 1.4),
    ("position_embedding.weight", 3.0),
    ("img_projection_up.weight", 2.0),
    ("img_projection_down.weight", 0.5),
    ("lora_B.weight", 0.25),
)
"""Standard deviation of a weight times the square root of its fan-in, by the end of its name; 1 for other names.

Found by trial: image, question, position, rotary factors and LoRA each change the middle layers by 10 % or more, and
two batch shapes still agree to 1e-6 in float32."""


@quiet_transformers()
def write_phi4_multimodal(
    folder: str | Path,
    *,
    seed: int = 0,
    layers: int = 8,
    original_max_position_embeddings: int = 4096,
    lora: bool = True,
    vision_heads: int = 2,
) -> Path:
    """Writes a small model folder in transformers' format that `Phi4MultimodalForCausalLM` loads.

    Special tokens, prompt, processors and crops are those of microsoft/Phi-4-multimodal-instruct. The vocabulary is
    small, and the weights (13 MB, bfloat16) are random. Embedding rows without a token are zero. torch's global random
    state does not change.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.
        original_max_position_embeddings: Longest prompt, in tokens, that uses the short rotary factors.
        lora: Write the LoRA for images too, in PEFT's format into `vision-lora/`.
        vision_heads: Number of the vision encoder's attention heads.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(layers, original_max_position_embeddings, vision_heads)
    generator = Generator().manual_seed(seed)
    tokenizer = make_tokenizer()

    weights = {name: draw(name, shape, generator) for name, shape in parameter_shapes(config).items()}
    weights["model.embed_tokens.weight"] = draw_rows(
        config.vocab_size,
        HIDDEN_SIZE,
        {
            **dict.fromkeys(tokenizer.get_vocab().values(), 1.0),
            END_ID: END_ROW_SCALE,
            **dict.fromkeys((IMAGE_ID, AUDIO_ID), PLACEHOLDER_ROW_SCALE),
        },
        generator,
    )
    save_weights(weights, folder / "model.safetensors")
    if lora:
        write_lora(layers, folder / "vision-lora", generator)

    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=ENDOFTEXT_ID, eos_token_id=[END_ID, ENDOFTEXT_ID], pad_token_id=ENDOFTEXT_ID, use_cache=True
    ).save_pretrained(folder)
    image_processor = Phi4MultimodalImageProcessor()
    image_processor.save_pretrained(folder)
    Phi4MultimodalProcessor(image_processor, Phi4MultimodalFeatureExtractor(), tokenizer).save_pretrained(folder)
    return folder


def make_config(layers: int, original_max_position_embeddings: int, vision_heads: int = 2) -> Phi4MultimodalConfig:
    """The published configuration with small widths and few layers."""
    return Phi4MultimodalConfig(
        architectures=["Phi4MultimodalForCausalLM"],
        dtype="bfloat16",
        vocab_size=200064,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=MLP_SIZE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        max_position_embeddings=131072,
        original_max_position_embeddings=original_max_position_embeddings,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": original_max_position_embeddings,
            "short_factor": [1.0] * len(PUBLISHED_LONG_FACTORS),
            "long_factor": list(PUBLISHED_LONG_FACTORS),
        },
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=ENDOFTEXT_ID,
        eos_token_id=[END_ID, ENDOFTEXT_ID],
        pad_token_id=ENDOFTEXT_ID,
        sliding_window=262144,
        vision_config={
            "hidden_size": VISION_SIZE,
            "intermediate_size": VISION_MLP_SIZE,
            "num_hidden_layers": 4,
            "num_attention_heads": vision_heads,
        },
        audio_config={
            "hidden_size": AUDIO_SIZE,
            "intermediate_size": AUDIO_SIZE,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "ext_pw_out_channel": AUDIO_SIZE,
            "depthwise_separable_out_channel": AUDIO_SIZE,
            "nemo_conv_channels": AUDIO_SIZE,
            "bias_max_distance": 16,
        },
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The shipped byte-level tokenizer with Phi-4's special tokens at their published ids."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER),
        bos_token="<|endoftext|>",  # noqa: S106 - a token of text
        eos_token="<|endoftext|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        unk_token="<|endoftext|>",  # noqa: S106
        extra_special_tokens={"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"},
        model_max_length=131072,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def parameter_shapes(config: Phi4MultimodalConfig) -> dict[str, tuple[int, ...]]:
    """Shape by sorted name of every stored tensor but the token embedding, which is drawn by row and is the head."""
    with torch.device("meta"):
        state = Phi4MultimodalForCausalLM(config).state_dict()
    drawn_otherwise = {"lm_head.weight", "model.embed_tokens.weight"}
    return {name: tuple(tensor.shape) for name, tensor in sorted(state.items()) if name not in drawn_otherwise}


def draw(name: str, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """One random tensor, scaled by its name; no value is neutral."""
    noise = torch.randn(shape, generator=generator)
    *_, module, parameter = name.split(".")
    if name == "model.norm.weight":
        # Random signs: with a tied head, all-positive weights favour the token just read, and answers loop sooner.
        signs = torch.where(torch.rand(shape, generator=generator) < 0.5, -1, 1)
        return signs * (1 + NORM_SPREAD * noise)
    if ("norm" in module and parameter == "weight") or parameter == "global_invstd":
        return 1 + NORM_SPREAD * noise
    if parameter.endswith("feature_extensor"):
        return noise
    if len(shape) == 1:
        return BIAS_STD * noise
    gain = next((gain for end, gain in GAINS if name.endswith(end)), 1.0)
    return noise * (gain / math.sqrt(math.prod(shape[1:])))


def write_lora(layers: int, folder: Path, generator: Generator) -> None:
    """Writes the LoRA of the decoder's linear layers in PEFT's format; alpha is twice the rank, as published."""
    sizes = {
        "mlp.down_proj": (MLP_SIZE, HIDDEN_SIZE),
        "mlp.gate_up_proj": (HIDDEN_SIZE, 2 * MLP_SIZE),
        "self_attn.o_proj": (HIDDEN_SIZE, HIDDEN_SIZE),
        "self_attn.qkv_proj": (HIDDEN_SIZE, (HEADS + 2 * KEY_VALUE_HEADS) * HIDDEN_SIZE // HEADS),
    }
    weights = {}
    for layer in range(layers):
        for module, (inputs, outputs) in sizes.items():
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            for name, shape in (("lora_A.weight", (LORA_RANK, inputs)), ("lora_B.weight", (outputs, LORA_RANK))):
                weights[f"{prefix}.{name}"] = draw(name, shape, generator)
    folder.mkdir(exist_ok=True)
    save_weights(weights, folder / "adapter_model.safetensors")
    adapter = {
        "base_model_name_or_path": None,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": 2 * LORA_RANK,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": LORA_RANK,
        "target_modules": LORA_TARGETS,
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=2) + "\n", encoding="utf-8")
