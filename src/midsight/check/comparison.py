"""`midsight models`: what models are, side by side, computed from their configs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter
from midsight.models.catalogue import LAYOUTS, find_adapter, open_checkpoint, read_model_type
from midsight.models.checkpoint import left_out_parts, part_of
from midsight.models.hub import TEXTS, fetch, is_hub_id
from midsight.models.native import read_architectures
from midsight.models.published import PUBLISHED
from midsight.models.quiet import quiet_transformers
from midsight.taps.tap import choose_layers


@dataclass(frozen=True)
class ModelRow:
    """One model of the comparison."""

    name: str
    """Folder or hub id."""
    origin: str
    """Where its config is from."""
    family: str
    """Name for people."""
    architecture: str
    """transformers' class."""
    vision_encoder: str
    """What it is, in words."""
    vision_width: int
    """Width of the encoder's feature layer, and of `vision_only_representation`."""
    processor_columns: int | None
    """Pixel columns of the processor's crops, and width of `processor_pooled_pixels`; None where nothing is cropped."""
    vision_access: str
    """Where the vision features are taken."""
    layers: int
    """Decoder layers."""
    default_layers: tuple[int, ...]
    """Those that `--layers default` takes."""
    hidden_size: int
    """Width of the decoder's hidden states."""
    image_token: str
    """The token that stands for image content."""
    image_token_id: int
    """Its id."""
    template: str
    """The prompt, with one image and the question's place."""
    parameters: Mapping[str, int]
    """By part of the model; tied ones once, LoRAs not."""
    left_out: tuple[str, ...]
    """Parts that no image prompt uses."""
    beside: str
    """What the published files hold beside them."""

    @property
    def total_parameters(self) -> int:
        """Of all parts."""
        return sum(self.parameters.values())


def compare(sources: list[str]) -> list[ModelRow]:
    """A row for each folder or hub id, for the published model of every family where there are none.

    The published ones need no download, of others on the hub only config and texts are fetched. Raises MidsightError.
    """
    return [describe_model(source) for source in sources or [model.hub_id for model in PUBLISHED]]


@quiet_transformers()
def describe_model(source: str) -> ModelRow:
    """What one model is, without its weights; raises MidsightError where its config does not tell."""
    published = next((model for model in PUBLISHED if model.hub_id == source and not Path(source).is_dir()), None)
    if published is not None:
        adapter = find_adapter([published.architecture], source)
        return make_row(source, published.origin, adapter, published.config(), published.beside)
    adapter, config = read_config(source)
    return make_row(source, "config.json", adapter, config, "")


def read_config(source: str) -> tuple[Adapter, Any]:
    """Adapter and transformers' config of a folder or hub id, of which no weights are fetched."""
    is_folder = Path(source).is_dir()
    if not is_folder and not is_hub_id(source):
        raise MidsightError(f"{source} is no folder, and no hub id like owner/name; give one of them.")
    folder = Path(source) if is_folder else fetch(source, None, allow=TEXTS, ignore="*/*")
    if read_model_type(folder) in LAYOUTS:
        if not is_folder:
            raise MidsightError(
                f"{source} has a layout whose config.json leaves out sizes that its tensors tell; give a folder "
                "with its weights."
            )
        checkpoint = open_checkpoint(folder)
        return checkpoint.adapter, checkpoint.config
    adapter = find_adapter(read_architectures(folder), source)
    try:
        return adapter, transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MidsightError(f"{folder / 'config.json'} is no config of {adapter.family}; download it again.") from error


def make_row(name: str, origin: str, adapter: Adapter, config: Any, beside: str) -> ModelRow:
    """The row of a model with this config."""
    text = config.get_text_config()
    return ModelRow(
        name=name,
        origin=origin,
        family=adapter.family,
        architecture=adapter.architecture,
        vision_encoder=adapter.vision_encoder(config),
        vision_width=adapter.vision_width(config),
        processor_columns=adapter.processor_columns(config) if adapter.processor_columns else None,
        vision_access=adapter.vision_access,
        layers=text.num_hidden_layers,
        default_layers=choose_layers("default", text.num_hidden_layers),
        hidden_size=text.hidden_size,
        image_token=adapter.image_token,
        image_token_id=adapter.image_token_id(config),
        template=adapter.render_prompt("{question}", (0, 10), 1, None).text,
        parameters=count_by_part(adapter, config),
        left_out=tuple(part for part in left_out_parts(adapter) if part in adapter.unused_modules),
        beside=beside,
    )


def count_by_part(adapter: Adapter, config: Any) -> dict[str, int]:
    """Parameters of the class with this config, by part; nothing is allocated."""
    with torch.device("meta"):
        model = getattr(transformers, adapter.architecture)(config)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name, adapter)] += parameter.numel()
    return dict(counts)
