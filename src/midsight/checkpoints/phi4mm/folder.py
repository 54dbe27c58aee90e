"""Opening a published folder: weights and processor from its own files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from midsight.checkpoints.checkpoint import Checkpoint
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.peft_folder import PeftFolder
from midsight.checkpoints.phi4mm.weights import fit_adapter, load_published, read_published
from midsight.checkpoints.processor_files import processor_folder
from midsight.checkpoints.tokenizer_rules import validate_rules
from midsight.errors import ModelFileError, first_line
from midsight.families.phi4_multimodal import FAMILY, IMAGE_TOKEN

MEDIA_TOKENS = {"image_token": IMAGE_TOKEN, "audio_token": "<|endoftext11|>"}
"""Tokens that transformers' processor looks up by name. The published files do not name them; the remote code does."""


def open_published(folder: Path, adapter: PeftFolder | None = None) -> Checkpoint:
    """Reads config and tensor headers, and accounts for every tensor. Raises MidsightError.

    `adapter` is applied in addition to the LoRA for images.
    """
    published = read_published(folder)
    published.account()
    processor_at, processor_notes = processor_folder(folder, adapter)
    return Checkpoint(
        format="published phi4mm",
        family=FAMILY,
        config=published.config,
        has_own_lora=True,
        headers=published.headers,
        account=lambda: fit_adapter(published, adapter),  # the folder's own tensors are accounted for above
        load_weights=lambda choice: load_published(folder, published, choice, adapter),
        load_processor=lambda: load_processor(processor_at),
        adapter=adapter,
        notes=(*published.notes, *processor_notes),
    )


def load_processor(folder: Path) -> Any:
    """Transformers' processor with the folder's tokenizer, image settings and chat template."""
    tokenizer = load_tokenizer(folder)
    extractor = transformers.Phi4MultimodalFeatureExtractor()
    return transformers.Phi4MultimodalProcessor(
        load_image_processor(folder), extractor, tokenizer, chat_template=read_chat_template(folder, tokenizer)
    )


def read_chat_template(folder: Path, tokenizer: Any) -> str | None:
    """The template in chat_template.jinja, else the one in tokenizer_config.json; None if the folder has neither."""
    path = folder / "chat_template.jinja"
    if not path.is_file():
        return tokenizer.chat_template
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read ({first_line(error)})", path) from error


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of tokenizer.json, without changes.

    transformers 5 would build the class that tokenizer_config.json names instead, whose rules differ.
    """
    settings = read_json(folder / "tokenizer_config.json")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelFileError(f"{folder} has no tokenizer.json", path)
    validate_rules(path, read_json(path))
    kept = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "chat_template")
    try:
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(path),
            clean_up_tokenization_spaces=False,
            **{name: settings[name] for name in kept if name in settings},
        )
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise ModelFileError(f"{path} is not usable ({first_line(error)})", path) from error
    for name, token in MEDIA_TOKENS.items():  # attributes, because an argument would add a token that the file lacks
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def load_image_processor(folder: Path) -> Any:
    """Transformers' image processor with the folder's maximum number of crops."""
    largest: Any = read_json(folder / "preprocessor_config.json").get("dynamic_hd")
    return transformers.Phi4MultimodalImageProcessor(dynamic_hd=largest)
