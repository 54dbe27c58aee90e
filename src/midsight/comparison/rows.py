"""The rows of the comparison, one for each model, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from midsight.checkpoints.checkpoint import left_out_parts
from midsight.checkpoints.quiet import quiet_transformers
from midsight.comparison.published import PUBLISHED, PublishedModel
from midsight.comparison.sizes import ConfigFacts, count_by_part, count_image_tokens, read_config
from midsight.families.catalogue import find_family
from midsight.families.family import missing_package
from midsight.families.inputs import keeps_state
from midsight.taps.tap import choose_layers


@dataclass(frozen=True)
class ModelRow:
    """One model in the comparison."""

    name: str
    """Folder or hub id."""
    origin: str
    """Where its sizes are from."""
    family: str
    """The family's name, as in `Phi-4-multimodal`."""
    architecture: str
    """transformers' class."""
    vision_encoder: str
    """The vision encoder, in words."""
    vision_width: int
    """Width of the encoder's feature layer, and of `vision_only_representation`."""
    processor_columns: int | None
    """Pixel columns of the processor's crops, and width of `processor_pooled_pixels`; None without crops."""
    vision_access: str
    """Where the vision features are taken, in words."""
    layers: int
    """Number of decoder layers."""
    default_layers: tuple[int, ...]
    """The layers that `layers="default"` takes."""
    hidden_size: int
    """Width of the decoder's hidden states."""
    image_token: str
    """The token that stands for image content."""
    image_token_id: int
    """Its id."""
    image_tokens: int | None
    """Number of them that stand for an image of 640 x 480; None if the folder has no processor."""
    shares_prefix: bool
    """Whether questions on the same images share the computation up to the last image token."""
    template: str
    """The prompt for one image and `{question}`."""
    parameters: Mapping[str, int]
    """Number of parameters by part of the model; tied ones count once, LoRAs do not count."""
    left_out: tuple[str, ...]
    """Parts that no image prompt uses."""
    also_published: str
    """What the published files hold in addition to the parameters."""
    lacks: str
    """The package without which parameters cannot be counted, and `parameters` is empty; empty if it is installed."""

    @property
    def total_parameters(self) -> int:
        """Number of parameters of all parts."""
        return sum(self.parameters.values())


def find_published(source: str) -> PublishedModel | None:
    """The published model with this hub id, None for any other; a folder of that name is another."""
    return next((model for model in PUBLISHED if model.hub_id == source and not Path(source).is_dir()), None)


@quiet_transformers()
def describe_model(source: str) -> ModelRow:
    """The row of one model; raises MidsightError if its config cannot be read."""
    if published := find_published(source):
        config = published.config()
        family = find_family([published.architecture], config.to_dict(), source)
        processor = published.processor()
        family.vision.validate_processor(processor, config)
        image_tokens = count_image_tokens(family, processor, config)
        facts = ConfigFacts(family, config, family.prompt.published or "", image_tokens)
        return make_row(source, published.origin, facts, published.also_published)
    return make_row(source, "config.json", read_config(source), "")


def make_row(name: str, origin: str, facts: ConfigFacts, also_published: str) -> ModelRow:
    """Makes the row of a model from the facts about it."""
    family, config = facts.family, facts.config
    text, lacks = config.get_text_config(), missing_package(family)
    return ModelRow(
        name=name,
        origin=origin,
        family=family.name,
        architecture=family.architecture,
        vision_encoder=family.vision.describe(config),
        vision_width=family.vision.width(config),
        processor_columns=family.vision.crop_px(config) if family.vision.crop_px else None,
        vision_access=family.vision.feature_source,
        layers=text.num_hidden_layers,
        default_layers=choose_layers("default", text.num_hidden_layers),
        hidden_size=text.hidden_size,
        image_token=family.prompt.image_token,
        image_token_id=family.prompt.image_token_id(config),
        image_tokens=facts.image_tokens,
        shares_prefix=family.decoder.shares_image_prefix and not keeps_state(config),
        template=facts.prompt,
        parameters={} if lacks else count_by_part(family, config),
        left_out=tuple(part for part in left_out_parts(family) if part in family.stored.unused_modules),
        also_published=also_published,
        lacks=lacks,
    )
