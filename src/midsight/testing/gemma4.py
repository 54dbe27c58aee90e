"""A small, complete Gemma 4 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import (
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4VideoProcessor,
    GenerationConfig,
)

from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import HIDDEN_SIZE, decoder_fields

PAD, EOS, BOS, END_OF_TURN, IMAGE = 0, 1, 2, 106, 258880
SPECIAL_TOKENS = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    3: "<unk>",
    105: "<|turn>",
    END_OF_TURN: "<turn|>",
    255999: "<|image>",
    256000: "<|audio>",
    IMAGE: "<|image|>",
    258881: "<|audio|>",
    258882: "<image|>",
    258883: "<audio|>",
    258884: "<|video|>",
}
"""Published ids and tokens."""

VOCABULARY_SIZE = 262144
IMAGE_TOKENS = 70
"""Most tokens of an image, the smallest number that transformers' image processor takes."""
PATCHES_IN_A_LINE = 256
SLIDING_WINDOW = 40
OWN_LAYERS = 3
"""Layers that share no keys, the first ones."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set loop_messages = messages -%}
{%- if messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\\n' -}}
    {{- messages[0]['content'] | trim -}}
    {{- '<turn|>\\n' -}}
    {%- set loop_messages = messages[1:] -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + role + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- elif message['content'] is sequence -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{- item['text'] | trim -}}
            {%- elif item['type'] == 'image' -%}
                {{- '\\n\\n<|image|>\\n\\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
{%- endif -%}
"""
"""Renders what the published template does for images and text, without tools, thoughts, sound and video."""

WORD_ROW_SCALE = 0.15
"""Scale of the embedding of other tokens: so small that a token does not follow itself, though the head is tied."""
HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.003), END_OF_TURN: 0.45}
"""Scales of embedding rows, which are those of the head too: `<turn|>` wins now and then, so that answers have many
lengths, and no answer contains another control token."""

GAINS = (
    ("embed_tokens_per_layer.weight", 2.5),
    ("position_embedding_table", 0.3),
)
OFFSETS = (("q_norm.weight", -0.6),)
"""Attention is not scaled in this family; with this it does not choose single tokens, which rounding could exchange."""


def write_gemma4(
    folder: str | Path, *, seed: int = 0, layers: int = 6, images_read_ahead: bool = True, experts: int | None = None
) -> Path:
    """Writes a small model folder that `Gemma4ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of google/gemma-4-E4B-it, except that images have at most 70 tokens.
    As there, layers have embeddings of their own, the later ones use the keys of earlier ones, and the encoder cuts off
    large values. As in google/gemma-4-31B-it, image tokens read each other in both directions, the layers that read the
    whole prompt have one weight for keys and values, and image features are standardised. Every third layer reads the
    whole prompt, the others 40 tokens. The vocabulary is small, and the weights (29 MB, bfloat16) are random. The head
    is the embedding, whose rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.
        images_read_ahead: Whether image tokens read each other in both directions; in E4B they do not.
        experts: Number of experts in each layer beside its own, two of which compute a token, as in
            google/gemma-4-26B-A4B-it; then layers have no embeddings of their own and share no keys, and there is no
            audio tower.

    Returns:
        The folder.
    """
    names = {"pad_token": PAD, "eos_token": EOS, "bos_token": BOS, "unk_token": 3}
    media = {"boi": 255999, "boa": 256000, "image": IMAGE, "audio": 258881, "eoi": 258882, "eoa": 258883}
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        extra_special_tokens={f"{name}_token": SPECIAL_TOKENS[one] for name, one in media.items()},
        model_max_length=131072,
        **{name: SPECIAL_TOKENS[one] for name, one in names.items()},
    )
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=IMAGE_TOKENS),
        tokenizer,
        Gemma4VideoProcessor(),
        chat_template=CHAT_TEMPLATE,
        image_seq_length=IMAGE_TOKENS,
    )
    return write_checkpoint(
        folder,
        Gemma4ForConditionalGeneration,
        make_config(layers, images_read_ahead, experts),
        processor,
        GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
        word_scale=WORD_ROW_SCALE,
        offsets=OFFSETS,
    )


def make_config(layers: int, images_read_ahead: bool, experts: int | None) -> Gemma4Config:
    """The published configuration with small widths, small images, a small window and few layers."""
    whole = {*range(OWN_LAYERS - 1, layers, OWN_LAYERS), layers - 1}
    own: dict[str, Any] = {
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": VOCABULARY_SIZE,
        "num_kv_shared_layers": max(0, layers - OWN_LAYERS),
        "use_double_wide_mlp": True,
    }
    if experts is not None:
        own = {
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": experts,
            "top_k_experts": 2,
            "moe_intermediate_size": HIDDEN_SIZE,
        }
    text = decoder_fields(
        "gemma4_text",
        layers,
        VOCABULARY_SIZE,
        head_dim=8,
        global_head_dim=16,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        layer_types=["full_attention" if layer in whole else "sliding_attention" for layer in range(layers)],
        sliding_window=SLIDING_WINDOW,
        final_logit_softcapping=30.0,
        use_bidirectional_attention="vision" if images_read_ahead else None,
        **own,
    )
    vision = {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": HIDDEN_SIZE // 2,
        "position_embedding_size": PATCHES_IN_A_LINE,
        "use_clipped_linears": True,
        "standardize": True,
    }
    audio = {
        "hidden_size": HIDDEN_SIZE,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "output_proj_dims": HIDDEN_SIZE,
        "subsampling_conv_channels": [8, 4],
    }
    return Gemma4Config(
        architectures=["Gemma4ForConditionalGeneration"],
        dtype="bfloat16",
        text_config=text,
        vision_config=vision,
        audio_config=None if experts else audio,
    )
