"""Mistral 3: images of any size through Pixtral's encoder, patches merged two by two, a marker after every line.

Source of the prompt: the chat template of mistralai/Mistral-Small-3.1-24B-Instruct-2503, and transformers'
processing_pixtral.py for what it writes for an image; of the modules: modeling_mistral3.py and modeling_pixtral.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PixtralImageProcessor, PixtralImageProcessorPil

from midsight.errors import MidsightError, ModelFileError, SampleError
from midsight.families import llava
from midsight.families.family import Family, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels, with_resizing
from midsight.prompts.declaration import FamilyPrompt

IMAGE_TOKEN = "[IMG]"  # noqa: S105  (a token of the vocabulary, no password)
BREAK, END = "[IMG_BREAK]", "[IMG_END]"
FEATURE_LAYER = -1
SYSTEM = """\
You are Mistral Small 3, a Large Language Model (LLM) created by Mistral AI, a French startup headquartered in Paris.
Your knowledge base was last updated on 2023-10-01. The current date is {date}.

When you're not sure about some information, you say that you don't have the information and don't make up anything.
If the user's question is not clear, ambiguous, or does not provide enough context for you to accurately answer the \
question, you do not try to answer it right away and you rather ask the user to clarify their request (e.g. "What are \
some good restaurants around me?" => "Where are you?" or "When is the next flight to Tokyo" => "Where do you travel \
from?")"""
"""The system message of the published template, with the day on which it is rendered."""


def merged_px(config: Any) -> int:
    """Side of the square that one image token stands for, in pixels."""
    return config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for another encoder or feature layer, ModelFileError if images do not fit the encoder."""
    vision = config.vision_config
    used = (vision.model_type, config.vision_feature_layer)
    if used != ("pixtral", FEATURE_LAYER):
        raise MidsightError(
            f"config.json has the encoder {used[0]} with feature layer {used[1]}, and midsight knows it with pixtral "
            f"and {FEATURE_LAYER}; use another model."
        )
    longest = processor.image_processor.size["longest_edge"]
    merges = getattr(processor, "spatial_merge_size", None)
    side = merged_px(config) if merges is None else processor.patch_size * merges
    if longest > vision.image_size or side != merged_px(config):
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make images of up to {longest} px and tokens of "
            f"{side} px, and config.json has {vision.image_size} and {merged_px(config)}"
        )


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """The image, scaled to whole tokens; `grid` counts them.

    Raises SampleError for an image so long that scaling leaves nothing of its shorter side.
    """
    longest = processor.image_processor.size["longest_edge"]
    if min(image.size) * longest < max(image.size):
        raise SampleError(
            f"The image of {image.size[0]} x {image.size[1]} pixels is more than {longest:,} times as long as it is "
            "wide, and scaled to fit the model nothing is left of it; crop or pad it."
        )
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=PixtralImageProcessorPil, tensors=PixtralImageProcessor
    )
    side = merged_px(config)
    pixel_values = image_processor(image, patch_size=side, return_tensors="pt")["pixel_values"]
    height, width = pixel_values.shape[-2:]
    rows, columns = height // side, width // side
    patch = config.vision_config.patch_size
    return ImageInputs(
        pixel_values=pixel_values,
        patch_mask=torch.ones((1, height // patch, width // patch), dtype=torch.bool),
        original_size=image.size,
        grid=(rows, columns),
        tokens=rows * columns,
        attended=rows * columns,
        text=BREAK.join([IMAGE_TOKEN * columns] * rows) + END,
    )


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The last hidden state of each image, [patches, vision width], line by line.

    An image goes through alone: the encoder's mask has a number for each two patches of a call.
    """
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    device, dtype = device_of(tower), next(tower.parameters()).dtype
    for image in images:
        output = tower(image.pixel_values.to(device, dtype), output_hidden_states=True)
        yield output.hidden_states[FEATURE_LAYER][0]


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Patches normed, merged two by two and projected."""
    return model.get_submodule(llava.PROJECTOR)(features, [tuple(image.pixel_values.shape[-2:])])


def forward_inputs(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The images, padded to the largest height and width, and their sizes without padding."""
    sizes = torch.tensor([image.pixel_values.shape[-2:] for image in images])
    height, width = sizes.amax(dim=0).tolist()
    padded = torch.zeros((len(images), 3, height, width))
    for one, image in zip(padded, images, strict=True):
        own_height, own_width = image.pixel_values.shape[-2:]
        one[:, :own_height, :own_width] = image.pixel_values[0]
    return {"pixel_values": padded, "image_sizes": sizes}


def tower_feature(output: Any, images: Sequence[ImageInputs]) -> list[Tensor]:
    """The last hidden state in the tower's own output, cut into images."""
    return list(output.hidden_states[FEATURE_LAYER][0].split([image.patch_mask.numel() for image in images]))


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"Pixtral, {vision.num_hidden_layers} layers, any size up to {vision.image_size} px in patches of "
        f"{vision.patch_size}"
    )


FAMILY = Family(
    name="Mistral 3",
    architecture="Mistral3ForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        placeholder=r"\[IMG_(BREAK|END)\]",
        published=f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]{IMAGE_TOKEN}{{question}}[/INST]",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-1]",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(),
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
    ),
    stored=StoredTensors(older_names=llava.OLDER_NAMES),
    reference=Reference(tower_feature=tower_feature, forward_inputs=forward_inputs),
)
