"""Squares of one size through one encoder and one projector: the shape that `midsight adapter` fills from a folder.

LLaVA 1.5 has it, and Aya Vision and DeepSeek-VL. What a processor writes for an image, and into how many squares it
cuts the image, are the folder's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.families.family import Reference, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels, with_own_resizing
from midsight.families.tiles import encode_tiles, split_by_image

ENCODERS = {"clip_vision_model": "CLIP", "siglip_vision_model": "SigLIP", "sam_vision_model": "SAM"}
"""`model_type` of an encoder to its name."""
LAST = "last_hidden_state"
"""The encoder's output after its last norm, if it has one."""


def first(size: Any) -> int:
    """A size of a config, which may have one for each side."""
    return size[0] if isinstance(size, list | tuple) else size


def image_px(config: Any) -> int:
    """Side of a square, in pixels."""
    return first(config.vision_config.image_size)


def patches_per_side(config: Any) -> int:
    """Patches in a row of a square."""
    return image_px(config) // first(config.vision_config.patch_size)


def encoder_name(vision: Any) -> str:
    """What an encoder is called: its `model_type`, if no name is known."""
    kind: str = vision.model_type
    return ENCODERS.get(kind, kind)


def describe_squares(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    size = f"{image_px(config)} px in patches of {first(vision.patch_size)}"
    return f"{encoder_name(vision)}, {vision.num_hidden_layers} layers, squares of {size}"


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Where the states of squares are taken, and what brings them into the decoder's width."""

    vision_tower: str
    """Path of the encoder."""
    projector: str
    """Path of the module between encoder and decoder; it takes [squares, patches, width]."""
    feature: int | str
    """Index of the encoder's `hidden_states` that goes to the projector, or `last_hidden_state`."""
    class_tokens: int = 0
    """Positions before the patches that the projector does not get: 1 for CLS, or 0."""
    pixels: Pixels = "pil"
    """The resizing of the published model; without `pil`, transformers has only its own."""

    def vision(self) -> Vision:
        """From an image to its embeddings."""
        taken = LAST if self.feature == LAST else f"hidden_states[{self.feature}]"
        return Vision(
            describe=describe_squares,
            feature_source=f"{self.vision_tower} {taken}{' without CLS' if self.class_tokens else ''}",
            image_inputs=self.image_inputs,
            encode=self.encode,
            useful_patches=self.useful_patches,
            image_embeddings=self.image_embeddings,
            crop_px=image_px,
            resizings=("pil", "transformers") if self.pixels == "pil" else ("transformers",),
        )

    def reference(self) -> Reference:
        """The feature layer in the encoder's own output."""
        return Reference(tower_feature=lambda output, images: split_by_image(self.states(output), images))

    def states(self, output: Any) -> Tensor:
        """The feature layer in what the encoder returns, [squares, positions, width]."""
        return output.last_hidden_state if self.feature == LAST else output.hidden_states[self.feature]

    def image_inputs(self, processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
        """The squares that the folder's whole processor cuts, and the text that it writes for the image."""
        own = copy.copy(processor)
        own.image_processor = resized_by(processor.image_processor, pixels)
        processed = own(
            text=[own.image_token], images=[image], return_tensors="pt", return_text_replacement_offsets=True
        )
        ((written,),) = processed["text_replacement_offsets"]
        image_token = own.tokenizer.convert_ids_to_tokens(config.image_token_id)
        squares, side = processed["pixel_values"], patches_per_side(config)
        tokens = written["replacement"].count(image_token)
        return ImageInputs(
            pixel_values=squares,
            patch_mask=torch.ones((len(squares), side, side), dtype=torch.bool),
            original_size=image.size,
            grid=(len(squares), 1),
            tokens=tokens,
            attended=tokens,
            text=written["replacement"],
        )

    def encode(self, model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
        """The feature layer of each image, [squares, positions, width]."""
        tower: Any = model.get_submodule(self.vision_tower)
        yield from encode_tiles(
            tower, images, lambda tiles: self.states(tower(tiles, output_hidden_states=self.feature != LAST))
        )

    def useful_patches(self, image: ImageInputs) -> Tensor:
        """Every patch; the positions before them do not count."""
        patches = image.patch_mask.flatten(1)
        return torch.cat([torch.zeros_like(patches[:, : self.class_tokens]), patches], dim=1)

    def image_embeddings(self, model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
        """Every patch through the projector."""
        return model.get_submodule(self.projector)(features[:, self.class_tokens :]).flatten(0, -2)


def resized_by(image_processor: Any, pixels: Pixels) -> Any:
    """The image processor in the class that resizes as asked; some have a class for tensors only."""
    resizes_tensors = not type(image_processor).__name__.endswith("Pil")
    return (
        image_processor if pixels == "transformers" and resizes_tensors else with_own_resizing(image_processor, pixels)
    )
