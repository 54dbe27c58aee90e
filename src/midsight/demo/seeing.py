"""The demo model: its sizes, and the expansion of the shipped file to a complete model folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from midsight.demo.folder import is_complete, write_checksums, write_folder
from midsight.errors import MidsightError
from midsight.testing import phi4_multimodal
from midsight.testing.phi4_multimodal import (
    PUBLISHED_LONG_FACTORS,
    TOKENIZER,
    make_config,
    save_weights,
    write_phi4_multimodal,
)

PACKED = Path(__file__).with_name("seeing.safetensors")
"""Weights and LoRA in bfloat16, written by demo/train.py.

`token_rows` are the embeddings of `token_ids`; the last row is for all other ids.
"""

LAYERS = 4
HIDDEN_SIZE = 64
HEADS, KEY_VALUE_HEADS = 2, 1
MLP_SIZE = 160
VISION_LAYERS = 3
VISION_HEADS = 2
LORA_RANK, LORA_ALPHA = 16, 32
AUDIO_SIZE = 16
AUDIO_WIDTHS = (
    "hidden_size",
    "intermediate_size",
    "ext_pw_out_channel",
    "depthwise_separable_out_channel",
    "nemo_conv_channels",
)
"""Widths of the audio tower, which has random weights and is never trained."""
VOCABULARY_SIZE = 200064
SHORT_PROMPT = 4096


def seeing_config() -> Any:
    """The demo model's configuration for transformers: the published one with small widths and few layers."""
    small = make_config(LAYERS, SHORT_PROMPT, VISION_HEADS)
    sizes = small.to_dict()
    sizes |= {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": MLP_SIZE,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
    }
    # the rotary embedding takes 24 of a head's 32 dimensions: 12 frequencies, four per published factor
    frequencies = 4 * len(PUBLISHED_LONG_FACTORS)
    sizes["rope_parameters"] |= {
        "short_factor": [1.0] * frequencies,
        "long_factor": [factor for factor in PUBLISHED_LONG_FACTORS for _ in range(4)],
    }
    sizes["vision_config"] |= {
        "hidden_size": HIDDEN_SIZE,
        "intermediate_size": MLP_SIZE,
        "num_hidden_layers": VISION_LAYERS,
    }
    sizes["audio_config"] |= dict.fromkeys(AUDIO_WIDTHS, AUDIO_SIZE)
    return type(small)(**sizes)


def write_seeing_model(folder: str | Path, packed: Path = PACKED) -> Path:
    """Writes the demo model as a complete folder in transformers' format, with its LoRA, and returns the folder.

    Tokenizer, processor, chat template and generation config are those of the small random checkpoint.
    """
    folder = write_phi4_multimodal(folder, layers=1)
    seeing_config().save_pretrained(folder)
    lora = folder / "vision-lora"
    lora_config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    lora_config |= {"r": LORA_RANK, "lora_alpha": LORA_ALPHA}
    (lora / "adapter_config.json").write_text(json.dumps(lora_config, indent=2) + "\n", encoding="utf-8")

    weights = load_file(packed)
    rows, token_ids = weights.pop("token_rows"), weights.pop("token_ids").long()
    table = rows[-1].repeat(VOCABULARY_SIZE, 1)
    table[token_ids] = rows[:-1]
    lora_weights = {name: weights.pop(name) for name in sorted(weights) if ".lora_" in name}
    save_weights(lora_weights, lora / "adapter_model.safetensors")
    save_weights({"model.embed_tokens.weight": table, **weights}, folder / "model.safetensors")
    return folder


def seeing_model(cache: Path | None = None) -> Path:
    """The demo model's folder in the user's cache, written at first use and again if it is damaged.

    Its name contains a hash of everything that it is made from, so different versions of midsight use different
    folders.
    """
    cache = cache or cache_folder()
    target = cache / f"demo-model-{content_address()}"
    if is_complete(target):
        return target
    shutil.rmtree(target, ignore_errors=True)
    try:
        remedy = "free some space there, or set XDG_CACHE_HOME to a folder that you may write"
        return write_folder(target, lambda folder: write_checksums(write_seeing_model(folder)), remedy)
    except MidsightError:
        if is_complete(target):  # another process wrote the same folder first
            return target
        raise


def cache_folder() -> Path:
    """`midsight` in XDG_CACHE_HOME, or in ~/.cache if that is not an absolute path."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".cache") / "midsight"


def content_address() -> str:
    """First 16 digits of the SHA-256 of everything that the folder is made from."""
    digest = hashlib.sha256(PACKED.read_bytes())
    testing = Path(phi4_multimodal.__file__).parent
    for file in (TOKENIZER, testing / "phi4_multimodal.py", testing / "random_weights.py", Path(__file__)):
        digest.update(file.read_bytes())
    for library in ("transformers", "safetensors"):
        digest.update(version(library).encode())
    return digest.hexdigest()[:16]
