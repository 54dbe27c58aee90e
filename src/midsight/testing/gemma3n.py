"""A small, complete Gemma 3n checkpoint with random weights; the seed decides every value."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    GenerationConfig,
    SiglipImageProcessor,
)

from midsight.testing.gemma3 import CHAT_TEMPLATE
from midsight.testing.random_weights import make_tokenizer, write_checkpoint
from midsight.testing.small_sizes import HIDDEN_SIZE, decoder_fields

PAD, EOS, BOS, END_OF_TURN, IMAGE = 0, 1, 2, 106, 262145
SPECIAL_TOKENS = {
    PAD: "<pad>",
    EOS: "<eos>",
    BOS: "<bos>",
    3: "<unk>",
    105: "<start_of_turn>",
    END_OF_TURN: "<end_of_turn>",
    255999: "<start_of_image>",
    256000: "<start_of_audio>",
    262144: "<end_of_image>",
    IMAGE: "<image_soft_token>",
    262272: "<end_of_audio>",
    262273: "<audio_soft_token>",
}
"""Published ids and tokens."""

VOCABULARY_SIZE, WORDS = 262400, 262144
SIDE, PLACE_PX = 4, 48
SLIDING_WINDOW = 40
OWN_LAYERS = 3
"""Layers that share no keys, the first ones."""

TEMPLATE = CHAT_TEMPLATE.replace("<start_of_image>", "<image_soft_token>")
"""Renders what the published template of google/gemma-3n-E4B-it does, without sound."""

WORD_ROW_SCALE = 0.3
"""Scale of the embedding of other tokens: so small that a token does not follow itself, though the head is tied."""
HEAD_SCALES = {**dict.fromkeys(SPECIAL_TOKENS, 0.003), END_OF_TURN: 0.9}
"""Scales of embedding rows, which are those of the head too: `<end_of_turn>` wins now and then, so that answers have
many lengths, and no answer contains another control token."""

NORM_EPS = 1e-2
"""Not the published 1e-6: the mean of random streams may be nearly zero, and the last norm would enlarge rounding."""

GAINS = (("embed_tokens_per_layer.weight", 2.5),)


def write_gemma3n(folder: str | Path, *, seed: int = 0, layers: int = 6) -> Path:
    """Writes a small model folder that `Gemma3nForConditionalGeneration` loads; needs the package timm.

    Special tokens, prompt and processor are those of google/gemma-3n-E4B-it, except that images have 192 pixels and 16
    tokens, the window of the sliding layers has 40, and the decoder's norms add 1e-2. The encoder has the published
    blocks with an eighth of their channels at most. The later layers use the keys of earlier ones. The vocabulary is
    small, and the weights (40 MB, bfloat16) are random. Every third layer reads the whole prompt. The head is the
    embedding, whose rows without a token are zero.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.
        layers: Number of decoder layers.

    Returns:
        The folder.
    """
    names = {"pad_token": PAD, "eos_token": EOS, "bos_token": BOS, "unk_token": 3}
    media = {"boi": 255999, "boa": 256000, "image": IMAGE, "audio": 262273, "eoi": 262144, "eoa": 262272}
    tokenizer = make_tokenizer(
        SPECIAL_TOKENS,
        first_token=SPECIAL_TOKENS[BOS],
        extra_special_tokens={f"{name}_token": SPECIAL_TOKENS[one] for name, one in media.items()},
        model_max_length=32768,
        **{name: SPECIAL_TOKENS[one] for name, one in names.items()},
    )
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(),
        SiglipImageProcessor(size={"height": SIDE * PLACE_PX, "width": SIDE * PLACE_PX}, do_normalize=False),
        tokenizer,
        chat_template=TEMPLATE,
        image_seq_length=SIDE**2,
    )
    return write_checkpoint(
        folder,
        Gemma3nForConditionalGeneration,
        make_config(layers),
        processor,
        GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, END_OF_TURN], pad_token_id=PAD),
        head_scales=HEAD_SCALES,
        gains=GAINS,
        seed=seed,
        word_scale=WORD_ROW_SCALE,
    )


def make_config(layers: int) -> Gemma3nConfig:
    """The published configuration with small widths, small images, a small window and few layers."""
    whole = {*range(OWN_LAYERS - 1, layers, OWN_LAYERS), layers - 1}
    return Gemma3nConfig(
        architectures=["Gemma3nForConditionalGeneration"],
        dtype="bfloat16",
        vision_soft_tokens_per_image=SIDE**2,
        text_config=decoder_fields(
            "gemma3n_text",
            layers,
            VOCABULARY_SIZE,
            head_dim=8,
            rms_norm_eps=NORM_EPS,
            sliding_window=SLIDING_WINDOW,
            layer_types=["full_attention" if layer in whole else "sliding_attention" for layer in range(layers)],
            num_kv_shared_layers=max(0, layers - OWN_LAYERS),
            vocab_size_per_layer_input=WORDS,
            hidden_size_per_layer_input=4,
            laurel_rank=4,
            activation_sparsity_pattern=[0.5 if layer < OWN_LAYERS else 0.0 for layer in range(layers)],
        ),
        vision_config={"model_args": {"channel_multiplier": 0.05, "msfa_output_resolution": SIDE}},
        audio_config={
            "hidden_size": HIDDEN_SIZE,
            "conf_num_hidden_layers": 1,
            "conf_num_attention_heads": 2,
            "sscp_conv_channel_size": [8, 4],
        },
    )
