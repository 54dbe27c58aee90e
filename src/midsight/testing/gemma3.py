"""A small, complete Gemma 3 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GenerationConfig,
)

from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import VISION_SIZE, decoder_fields, siglip_fields

PAD, EOS, BOS, END_OF_TURN, IMAGE = 0, 1, 2, 106, 262144
SPECIAL_TOKENS = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    3: "<unk>",
    105: "<start_of_turn>",
    END_OF_TURN: "<end_of_turn>",
    255999: "<start_of_image>",
    256000: "<end_of_image>",
    IMAGE: "<image_soft_token>",
}
"""The published ids and tokens."""

VOCABULARY_SIZE = 262208
IMAGE_PX, PATCH_PX, IMAGE_TOKENS = 112, 14, 16
SLIDING_WINDOW = 40

CHAT_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
"""The published template of google/gemma-3-4b-it."""

WORD_ROW_SCALE = 0.3
"""Scale of the embedding of other tokens: so small that a token does not follow itself, though the head is tied."""
STOP_ROW_SCALE = 0.9
"""Scale of the embedding of `<end_of_turn>`, which is its row of the head too: large enough that it wins now and then,
so answers have many lengths."""
CONTROL_ROW_SCALE = 0.003
"""Scale of the rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_gemma3(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Gemma3ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of google/gemma-3-4b-it, except that images have 112 pixels and 16
    tokens, and the window of the sliding layers has 40. The vocabulary is small, and the weights (17 MB, bfloat16) are
    random. Every sixth layer reads the whole prompt. The head is the embedding. Embedding rows without a token are
    zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        model_max_length=131072,
        **names,
    )
    image_processor = Gemma3ImageProcessor(size={"height": IMAGE_PX, "width": IMAGE_PX})
    return write_checkpoint(
        folder,
        Gemma3ForConditionalGeneration,
        make_config(layers),
        Gemma3Processor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=IMAGE_TOKENS),
        GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD),
        head_scales={**dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), END_OF_TURN: STOP_ROW_SCALE},
        gains=GAINS,
        seed=seed,
        word_scale=WORD_ROW_SCALE,
        norms_add_one=True,
    )


def make_config(layers: int) -> Gemma3Config:
    """The published configuration with small widths, small images, a small window and few layers."""
    return Gemma3Config(
        architectures=["Gemma3ForConditionalGeneration"],
        dtype="bfloat16",
        mm_tokens_per_image=IMAGE_TOKENS,
        image_token_index=IMAGE,
        text_config=decoder_fields(
            "gemma3_text",
            layers,
            VOCABULARY_SIZE,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=SLIDING_WINDOW,
            rope_scaling={"factor": 8.0, "rope_type": "linear"},
        ),
        vision_config=siglip_fields(VISION_SIZE, IMAGE_PX, PATCH_PX),
    )
