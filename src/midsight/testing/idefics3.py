"""Small, complete Idefics3 and SmolVLM2 checkpoints with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Generator
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from midsight.checkpoints.quiet import quiet_transformers
from midsight.testing.random_weights import draw_weights, make_tokenizer, save_weights

IDEFICS3_TOKENS = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128002: "<|reserved_special_token_0|>",
    128256: "<fake_token_around_image>",
    128257: "<image>",
    128258: "<end_of_utterance>",
}
"""The published ids and tokens of Idefics3. It spells the markers of rows and columns in letters."""
SMOLVLM_TOKENS = {
    0: "<|endoftext|>",
    1: "<|im_start|>",
    2: "<|im_end|>",
    49152: "<global-img>",
    **{49153 + 6 * row + column: f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)},
    49189: "<fake_token_around_image>",
    49190: "<image>",
    49279: "<end_of_utterance>",
}
"""The published ids and tokens of SmolVLM2."""

HIDDEN_SIZE = 32
VISION_SIZE = 16
TILE_PX, PATCH_PX, SCALE = 56, 14, 2
TILES_PER_SIDE = 5

CHAT_TEMPLATE = (
    "FIRST{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""The published template of both as public projects repeat it, with FIRST for the first token."""

STOP_ROW_SCALE = 3.0
"""Scale of the head's row of `<end_of_utterance>`: large enough that it wins now and then, so answers have many
lengths."""
CONTROL_ROW_SCALE = 0.01
"""Scale of the head's rows of the other control tokens: so small that no answer contains one."""

GAINS = (
    ("self_attn.q_proj.weight", 1.4),
    ("self_attn.k_proj.weight", 1.4),
)
"""Found by trial: image, question, position and layer each change the states by 10 % or more."""


def write_idefics3(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Idefics3ForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of HuggingFaceM4/Idefics3-8B-Llama3, except that tiles have 56 pixels
    and that there are at most five in a line. The vocabulary is small, and the weights (17 MB, bfloat16) are random.
    Embedding rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(
        IDEFICS3_TOKENS,
        first_token="<|begin_of_text|>",  # noqa: S106
        bos_token="<|begin_of_text|>",  # noqa: S106  (tokens of the vocabulary)
        eos_token="<|end_of_text|>",  # noqa: S106
        pad_token="<|reserved_special_token_0|>",  # noqa: S106
        model_max_length=131072,
    )
    processor = Idefics3Processor(
        Idefics3ImageProcessor(**image_fields()),
        tokenizer,
        image_seq_len=(TILE_PX // PATCH_PX // SCALE) ** 2,
        chat_template=CHAT_TEMPLATE.replace("FIRST", "<|begin_of_text|>"),
    )
    config = Idefics3Config(
        architectures=["Idefics3ForConditionalGeneration"],
        image_token_id=128257,
        text_config=text_fields(
            layers, vocabulary=128259, theta=500000.0, bos=128000, eos=[128001, 128258], pad=128002
        ),
        vision_config=vision_fields(),
        **COMMON,
    )
    return write_folder(Path(folder), config, Idefics3ForConditionalGeneration, processor, IDEFICS3_TOKENS, seed)


def write_smolvlm(folder: str | Path, *, seed: int = 2, layers: int = 6) -> Path:
    """Writes a small model folder that `SmolVLMForConditionalGeneration` loads.

    Special tokens, prompt and processor are those of HuggingFaceTB/SmolVLM2-2.2B-Instruct; otherwise like
    `write_idefics3`. transformers makes this processor only where the package num2words is installed.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights; with 2, answers have many lengths.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(
        SMOLVLM_TOKENS,
        bos_token="<|im_start|>",  # noqa: S106  (tokens of the vocabulary)
        eos_token="<end_of_utterance>",  # noqa: S106
        pad_token="<|im_end|>",  # noqa: S106
        extra_special_tokens={
            "fake_image_token": "<fake_token_around_image>",
            "image_token": "<image>",
            "end_of_utterance_token": "<end_of_utterance>",
            "global_image_token": "<global-img>",
        },
        model_max_length=8192,
    )
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**image_fields()),
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=(TILE_PX // PATCH_PX // SCALE) ** 2,
        chat_template=CHAT_TEMPLATE.replace("FIRST", "<|im_start|>"),
    )
    config = SmolVLMConfig(
        architectures=["SmolVLMForConditionalGeneration"],
        image_token_id=49190,
        text_config=text_fields(layers, vocabulary=49280, theta=130000.0, bos=1, eos=49279, pad=2),
        vision_config=vision_fields(),
        **COMMON,
    )
    return write_folder(Path(folder), config, SmolVLMForConditionalGeneration, processor, SMOLVLM_TOKENS, seed)


COMMON: dict[str, Any] = {"dtype": "bfloat16", "scale_factor": SCALE, "tie_word_embeddings": False}


def image_fields() -> dict[str, Any]:
    """The image processor's settings."""
    return {"size": {"longest_edge": TILES_PER_SIDE * TILE_PX}, "max_image_size": {"longest_edge": TILE_PX}}


def vision_fields() -> dict[str, Any]:
    """The encoder's configuration with small widths and few layers."""
    return {
        "hidden_size": VISION_SIZE,
        "intermediate_size": 2 * VISION_SIZE,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
    }


def text_fields(
    layers: int, *, vocabulary: int, theta: float, bos: int, eos: int | list[int], pad: int
) -> dict[str, Any]:
    """The decoder's configuration with small widths and few layers."""
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": 2 * HIDDEN_SIZE,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
    }


@quiet_transformers()
def write_folder(
    folder: Path, config: Any, model: type, processor: Any, special_tokens: dict[int, str], seed: int
) -> Path:
    """Writes the files of a checkpoint with this config and processor."""
    folder.mkdir(parents=True, exist_ok=True)
    words = dict.fromkeys(processor.tokenizer.get_vocab().values(), 1.0)
    (stop,) = (one for one, token in special_tokens.items() if token == "<end_of_utterance>")  # noqa: S105
    head = {**words, **dict.fromkeys(special_tokens, CONTROL_ROW_SCALE), stop: STOP_ROW_SCALE}
    rows = {"model.text_model.embed_tokens.weight": words, "lm_head.weight": head}
    weights = draw_weights(model, config, rows, Generator().manual_seed(seed), GAINS)
    save_weights(weights, folder / "model.safetensors")
    config.save_pretrained(folder)
    text = config.text_config
    GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
