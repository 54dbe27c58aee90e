"""Molmo 2: the whole image and overlapping crops, before the user's turn; all image tokens read each other.

Source of the prompt: the chat template of allenai/Molmo2-4B, and transformers' processing_molmo2.py for what it writes
for an image; of crops and modules: image_processing_molmo2.py and modeling_molmo2.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError, ModelFileError
from midsight.families import llava
from midsight.families.family import Decoder, Family, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE, IMAGE_TOKEN = "<|image|>", "<im_patch>"
START, WHOLE_START, COLUMN, END = "<im_start>", "<low_res_im_start>", "<im_col>", "<im_end>"
FEATURE_LAYERS = (-1, -7)
"""Layers of the encoder whose outputs the decoder takes side by side: 24 and 18 of 25."""
OLDER_NAMES = {
    r"^model\.transformer\.blocks\.": "model.language_model.layers.",
    r"^model\.transformer\.ln_f\.": "model.language_model.norm.",
    r"^model\.transformer\.wte\.(new_)?embedding$": "model.language_model.embed_tokens.weight",
    r"^model\.vision_backbone\.image_vit\.transformer\.resblocks\.": f"{llava.VISION_TOWER}.layers.",
    r"^model\.vision_backbone\.image_vit\.": f"{llava.VISION_TOWER}.",
    r"^model\.vision_backbone\.": f"{llava.PROJECTOR}.",
}
"""Names of tensors in the published files, as StoredTensors has them; some hold several weights of transformers'."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises MidsightError for other feature layers than the published ones, and for crops that do not fit them."""
    vision = config.vision_config
    count = vision.num_hidden_layers
    layers = [layer % count - count for layer in config.adapter_config.vision_feature_layer]
    if layers != [*FEATURE_LAYERS]:
        raise MidsightError(
            f"config.json has the feature layers {layers} of the encoder, counted from its end, and midsight knows "
            f"Molmo 2 with {[*FEATURE_LAYERS]}; use another model."
        )
    image_processor = processor.image_processor
    makes, takes = (
        (image_processor.size["height"], image_processor.patch_size),
        (vision.image_size[0], vision.patch_size),
    )
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json makes crops of {makes[0]} px in patches of {makes[1]}, and config.json has "
            f"{takes[0]} and {takes[1]}"
        )


def image_inputs(processor: Any, image: Image.Image, _pixels: Pixels, config: Any) -> ImageInputs:
    """The whole image as one crop, then the overlapping crops line by line; `grid` counts image tokens of the crops.

    transformers has one image processor for them, which resizes with tensors, as the published one does.
    """
    processed = processor.image_processor(image, return_tensors="pt")
    whole, _, rows, columns = processed["image_grids"][0].tolist()
    crops, pooled = processed["pixel_values"], processed["image_token_pooling"]
    side = config.vision_config.image_size[0] // config.vision_config.patch_size
    reached = torch.zeros(len(crops) * side * side, dtype=torch.bool)
    reached[pooled[pooled >= 0].long()] = True
    return ImageInputs(
        pixel_values=crops,
        patch_mask=reached.view(len(crops), side, side),
        original_size=image.size,
        grid=(rows, columns),
        tokens=len(pooled),
        attended=len(pooled),
        text=image_text(processor, whole, rows, columns),
        pooled=pooled,
    )


def image_text(processor: Any, whole: int, rows: int, columns: int) -> str:
    """What the processor writes for an image: `whole` lines of `whole` tokens, then `rows` of `columns`."""
    column = COLUMN if getattr(processor, "image_use_col_tokens", True) else ""
    after_whole = getattr(processor, "use_single_crop_col_tokens", False)
    whole_column = column if after_whole is None else COLUMN * after_whole
    start = WHOLE_START if getattr(processor, "use_single_crop_start_token", True) else START
    lines = (IMAGE_TOKEN * whole + whole_column) * whole
    return f"{start}{lines}{END}{START}{(IMAGE_TOKEN * columns + column) * rows}{END}"


def with_first_token(text: str, tokenizer: Any) -> str:
    """The rendered prompt with the first token, which the processor puts there."""
    first = tokenizer.bos_token or tokenizer.eos_token
    return text if text.startswith(first) else f"{first}{text}"


def feature_of(output: Any) -> Tensor:
    """The feature layers in the tower's own output, side by side: [crops, patches, 2 x encoder width]."""
    return torch.cat([output.hidden_states[layer] for layer in FEATURE_LAYERS], dim=-1)


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """The feature layers of each image, [crops, patches, vision width]."""
    tower: Any = model.get_submodule(llava.VISION_TOWER)
    yield from encode_tiles(tower, images, lambda crops: feature_of(tower(crops, output_hidden_states=True)))


def image_embeddings(model: nn.Module, features: Tensor, image: ImageInputs) -> Tensor:
    """Patches pooled two by two over all crops, projected, and added to the embedding of the image token."""
    hf_model: Any = model
    pooled = torch.as_tensor(image.pooled).to(features.device)
    projected = model.get_submodule(llava.PROJECTOR)(features, pooled).last_hidden_state
    token_id = torch.full((1,), hf_model.config.image_patch_id, device=projected.device)
    return projected + hf_model.get_input_embeddings()(token_id).to(projected.device)


def blocks(config: Any, token_ids: Tensor, _layouts: Sequence[TokenLayout]) -> Tensor:
    """0 for tokens that an image is written with, those of all images alike, and -1 for others: int64 [rows, tokens].

    What follows a patch is another patch, the end of its line or that of the image.
    """
    is_patch = token_ids == config.image_patch_id
    inside = is_patch.clone()
    for token_id in (config.image_start_token_id, config.low_res_image_start_token_id, config.image_end_token_id):
        inside |= token_ids == token_id
    inside[:, 1:] |= is_patch[:, :-1]
    return inside.long() - 1


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of the forward; without token types it would let image tokens read backwards only."""
    pooled, grids, before = [], [], 0
    for image in images:
        of_image = torch.as_tensor(image.pooled)
        pooled.append(torch.where(of_image >= 0, of_image + before, of_image))
        before += image.patch_mask.numel()
        whole = math.isqrt(image.tokens - math.prod(image.grid))
        grids.append([whole, whole, *image.grid])
    return {
        "pixel_values": torch.cat([image.pixel_values for image in images]),
        "image_token_pooling": torch.cat(pooled),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor([len(image.pixel_values) for image in images]),
        "mm_token_type_ids": blocks(config, token_ids, ()) + 1,
    }


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"SigLIP 2, {vision.num_hidden_layers} layers, the whole image and overlapping crops of "
        f"{vision.image_size[0]} px in patches of {vision.patch_size}"
    )


FAMILY = Family(
    name="Molmo 2",
    architecture="Molmo2ForConditionalGeneration",
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        template_token=IMAGE,
        complete_text=with_first_token,
        placeholder=r"<(low_res_)?im_\w+>|<frame_\w+>|<\|(video|endoftext)\|>|\|<EXTRA_TOKENS_\d+>\|",
        published=f"{IMAGE}<|im_start|>user\n{{question}}<|im_end|>\n<|im_start|>assistant\n",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_tower hidden_states[-1] and [-7] side by side, of the patches that are pooled",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=lambda image: image.patch_mask.flatten(1),
        image_embeddings=image_embeddings,
        width=lambda config: config.vision_config.hidden_size * len(FEATURE_LAYERS),
        validate_processor=validate_processor,
        resizings=("transformers",),
    ),
    decoder=Decoder(images_read_ahead=True, blocks=blocks),
    stored=StoredTensors(older_names=OLDER_NAMES),
    reference=Reference(
        tower_feature=lambda output, images: split_by_image(feature_of(output), images),
        forward_inputs=forward_inputs,
    ),
)
