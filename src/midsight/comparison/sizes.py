"""A model's config, its prompt and its number of parameters; weights are neither read nor downloaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

from midsight.checkpoints.checkpoint import part_of
from midsight.checkpoints.headers import read_json
from midsight.checkpoints.hub import TEXTS, fetch, is_folder, is_hub_id, read_architectures
from midsight.checkpoints.native import from_pretrained, load_processor
from midsight.checkpoints.open_folder import PUBLISHED_FORMATS, open_checkpoint, read_model_type
from midsight.errors import MidsightError, ModelFileError, first_line
from midsight.families.catalogue import find_family
from midsight.families.family import Family
from midsight.prompts.chat_template import default_prompt, find_template

TYPICAL_IMAGE = (640, 480)
"""Width and height, in pixels, of the image whose tokens are counted."""


@dataclass(frozen=True)
class ConfigFacts:
    """What the small files of a folder say about its model."""

    family: Family
    """The family that it belongs to."""
    config: Any
    """transformers' config of the whole model."""
    prompt: str
    """Its prompt for one image and `{question}`: the published model's without tokenizer, empty without template."""
    image_tokens: int | None
    """Tokens that stand for an image of TYPICAL_IMAGE; None without a processor."""


def read_config(source: str) -> ConfigFacts:
    """Reads the small files of a folder or hub id; raises MidsightError."""
    in_folder = is_folder(source)
    if not in_folder and not is_hub_id(source):
        raise MidsightError(f"{source} is neither a folder nor a hub id like owner/name; give one of them.")
    folder = Path(source) if in_folder else fetch(source, None, allow=TEXTS, ignore="*/*")
    if read_model_type(folder) in PUBLISHED_FORMATS:
        if not in_folder:
            raise MidsightError(
                f"{source} has a config.json without the vision encoder's sizes; give a folder with its weights."
            )
        checkpoint = open_checkpoint(folder)
        return facts_of(checkpoint.family, checkpoint.config, checkpoint.load_processor)
    family = find_family(read_architectures(folder), read_json(folder / "config.json"), source)
    config = from_pretrained(transformers.AutoConfig, folder, "config.json")
    family.validate_config(config)
    return facts_of(family, config, lambda: load_processor(folder))


def facts_of(family: Family, config: Any, load: Callable[[], Any]) -> ConfigFacts:
    """The facts about a folder whose processor `load` makes; a folder without one can be compared too."""
    try:
        processor = load()
    except MidsightError:
        return ConfigFacts(family, config, family.prompt.published or "", None)
    try:
        image_tokens = count_image_tokens(family, processor, config)
    except Exception:  # settings that do not fit each other may raise anything; the sizes can be compared all the same
        image_tokens = None
    return ConfigFacts(family, config, read_prompt(family, processor), image_tokens)


def count_image_tokens(family: Family, processor: Any, config: Any) -> int:
    """Number of tokens that stand for an image of TYPICAL_IMAGE; raises whatever the processor raises."""
    image = Image.new("RGB", TYPICAL_IMAGE)
    return family.vision.image_inputs(processor, image, family.vision.default_pixels, config).tokens


def read_prompt(family: Family, processor: Any) -> str:
    """The prompt for one image and `{question}`; empty if the processor has no usable chat template."""
    template = find_template(processor, family.prompt)
    return default_prompt(processor, family.prompt, template) if template else ""


def count_by_part(family: Family, config: Any) -> dict[str, int]:
    """Number of parameters of a model with this config, by part; no memory is allocated."""
    try:
        with torch.device("meta"):
            model = getattr(transformers, family.architecture)(config)
    except Exception as error:  # transformers raises many types for wrong values
        raise ModelFileError(
            f"transformers makes no {family.name} from the sizes in config.json: {first_line(error)}",
            Path("config.json"),
        ) from error
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name, family)] += parameter.numel()
    return dict(counts)
