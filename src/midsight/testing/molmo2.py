"""A small, complete Molmo 2 checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from torch import Generator
from transformers import (
    GenerationConfig,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights

ENDOFTEXT, IM_END = 151643, 151645
SPECIAL_TOKENS = {
    ENDOFTEXT: "<|endoftext|>",
    151644: "<|im_start|>",
    IM_END: "<|im_end|>",
    151936: "<im_start>",
    151937: "<im_end>",
    151938: "<im_patch>",
    151939: "<im_col>",
    151940: "<low_res_im_start>",
    151941: "<|image|>",
    151942: "<im_low>",
    151943: "<frame_start>",
    151944: "<frame_end>",
    151945: "<|video|>",
}
"""The published ids and tokens, without those of tools and the reserved ones."""

VOCABULARY_SIZE, ADDED_SIZE = 151936, 128
HIDDEN_SIZE = 32
VISION_SIZE = 16
CROP_PX, PATCH_PX, MARGIN = 98, 14, 1

CHAT_TEMPLATE = """\
{% set DEMO_STYLES = ['user_qa', 'long_caption', 'demo'] %}\
{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}\
{% set has_subtitle = messages and messages[0]['role'].lower() == 'subtitle' %}\
{% for message in messages %}{% if message['content'] is not string %}{% for content in message['content'] %}\
{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}\
{% set image_count.value = image_count.value + 1 %}\
{% elif content['type'] == 'video' or 'video' in content or 'video_url' in content %}\
{% set video_count.value = video_count.value + 1 %}{% endif %}{% endfor %}{% endif %}{% endfor %}\
{% if image_count.value == 1 %}{{ '<|image|>' }}{% elif image_count.value > 1 %}\
{% for i in range(image_count.value) %}{{ 'Image ' ~ (i + 1) ~ '<|image|>' }}{% endfor %}{% endif %}\
{% for _ in range(video_count.value) %}{{ '<|video|>' }}{% endfor %}\
{% if has_subtitle %}{{ messages[0]['content'] }}{% endif %}\
{% for message in messages %}{% set role = message['role'].lower() %}\
{% if role == 'subtitle' %}{% continue %}{% endif %}{% set conv_index = loop.index - (1 if has_subtitle else 0) %}\
{%- if (conv_index % 2 == 1 and role != 'user') or (conv_index % 2 == 0 and role != 'assistant') -%}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}\
{% if message['content'] is string %}{% set text_content = message['content'] %}{% else %}\
{% set m = namespace(text='') %}{% for content in message['content'] %}{% if content['type'] == 'text' %}\
{% if content['style'] is defined and content['style'] not in DEMO_STYLES %}\
{% set seg = content['style'] ~ ': ' ~ content['text'] %}{% else %}{% set seg = content['text'] %}{% endif %}\
{% set m.text = m.text ~ ('' if not m.text else ' ') ~ seg %}{% endif %}{% endfor %}{% set text_content = m.text %}\
{% endif %}{% if role == 'user' %}\
{% if not (has_subtitle and loop.index == 2) and not (not has_subtitle and loop.first) %}\
{{ '<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>user\\n' }}{{ text_content }}{{ '<|im_end|>\\n' }}{% else %} {# assistant #}\
{{ '<|im_start|>assistant\\n' }}{{ text_content }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""The published template of allenai/Molmo2-4B with three of its styles."""

STOP_ROW_SCALE = 3.0
"""Scale of the head's row of `<|im_end|>`: large enough that it wins now and then, so answers have many lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("patch_embedding.weight", 0.04),
    ("positional_embedding", 0.5),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


@quiet_transformers()
def write_molmo2(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Molmo2ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of allenai/Molmo2-4B, except that crops have 98 pixels and
    overlap by two patches. The vocabulary is small, and the weights (20 MB, bfloat16) are random.
    Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    end, padding = SPECIAL_TOKENS[IM_END], SPECIAL_TOKENS[ENDOFTEXT]
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS, bos_token=end, eos_token=end, pad_token=padding, model_max_length=1010000
    )
    words = dict.fromkeys(tokenizer.get_vocab().values(), 1.0)
    head = {**words, **dict.fromkeys(SPECIAL_TOKENS, CONTROL_ROW_SCALE), IM_END: STOP_ROW_SCALE}
    head = {one: scale for one, scale in head.items() if one < VOCABULARY_SIZE}
    rows = {"model.language_model.embed_tokens.weight": words, "lm_head.weight": head}
    config = make_config(layers)
    weights = draw_weights(Molmo2ForConditionalGeneration, config, rows, Generator().manual_seed(seed), GAINS)
    image_processor = Molmo2ImageProcessor(size={"height": CROP_PX, "width": CROP_PX}, overlap_margins=[MARGIN, MARGIN])
    processor = Molmo2Processor(
        image_processor,
        Molmo2VideoProcessor(),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        use_single_crop_col_tokens=False,
    )
    save_weights(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=IM_END, eos_token_id=IM_END, pad_token_id=ENDOFTEXT).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def make_config(layers: int) -> Molmo2Config:
    """The published configuration with small widths, small crops and few layers."""
    attention = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return Molmo2Config(
        architectures=["Molmo2ForConditionalGeneration"],
        dtype="bfloat16",
        text_config={
            "model_type": "molmo2_text",
            "vocab_size": VOCABULARY_SIZE,
            "additional_vocab_size": ADDED_SIZE,
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
        },
        adapter_config={
            "model_type": "molmo2_adapter",
            "vision_feature_layer": [7, 1],
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "text_hidden_size": HIDDEN_SIZE,
            **attention,
        },
        vision_config={
            "model_type": "molmo2_vision",
            "hidden_size": VISION_SIZE,
            "intermediate_size": 2 * VISION_SIZE,
            "num_hidden_layers": 8,
            "image_size": [CROP_PX, CROP_PX],
            "patch_size": PATCH_PX,
            **attention,
        },
    )
