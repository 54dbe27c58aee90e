"""`midsight models`: what models are, side by side, computed from their configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midsight.models.adapter import Adapter
from midsight.models.catalogue import find_adapter
from midsight.models.checkpoint import left_out_parts
from midsight.models.published import PUBLISHED
from midsight.models.quiet import quiet_transformers
from midsight.models.sizes import count_by_part, read_config
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
