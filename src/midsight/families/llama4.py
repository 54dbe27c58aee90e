"""Llama 4: tiles and then the whole image; most of the decoder's layers read only their chunk of the prompt.

Source of the prompt: the chat template in transformers' processing_llama4.py, which also has what is written for an
image; of tiles and modules: image_processing_llama4.py and modeling_llama4.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers.models.llama4.modeling_llama4 import Llama4CausalLMOutputWithPast, Llama4TextDecoderLayer
from transformers.utils.generic import ModelOutput

from midsight.errors import ModelFileError, counted
from midsight.families.family import Family, Modules, Reference, StoredTensors, Vision
from midsight.families.inputs import ImageInputs
from midsight.families.resizing import Pixels
from midsight.families.squares import patches_per_side
from midsight.families.tiles import encode_tiles, split_by_image
from midsight.prompts.declaration import FamilyPrompt

IMAGE, IMAGE_TOKEN = "<|image|>", "<|patch|>"
START, END = "<|image_start|>", "<|image_end|>"
NEXT_COLUMN, NEXT_ROW = "<|tile_x_separator|>", "<|tile_y_separator|>"
VISION_TOWER = "vision_model"
LAST_NORM = f"{VISION_TOWER}.layernorm_post"


def tokens_of_tile(config: Any) -> int:
    """Image tokens of one tile."""
    return int((patches_per_side(config) * config.vision_config.pixel_shuffle_ratio) ** 2)


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the tiles do not fit the encoder."""
    vision = config.vision_config
    takes = (vision.image_size, vision.patch_size, round(vision.pixel_shuffle_ratio**-2))
    makes = (
        processor.image_processor.size["height"],
        getattr(processor, "patch_size", takes[1]),
        getattr(processor, "downsample_ratio", takes[2]),
    )
    if makes != takes:
        raise ModelFileError(
            f"preprocessor_config.json and processor_config.json make tiles of {makes[0]} px in patches of {makes[1]}, "
            f"{makes[2]} to a token, and config.json has {takes[0]}, {takes[1]} and {takes[2]}"
        )


def image_inputs(processor: Any, image: Image.Image, _pixels: Pixels, config: Any) -> ImageInputs:
    """The tiles line by line, and then the whole image if there are several; `grid` counts tiles.

    transformers has one image processor for them, which resizes with tensors. The model reads padding like the image.
    """
    processed = processor.image_processor(image, return_tensors="pt")
    tiles, (rows, columns) = processed["pixel_values"].float(), processed["aspect_ratios"][0].tolist()
    side, each = patches_per_side(config), tokens_of_tile(config)
    return ImageInputs(
        pixel_values=tiles,
        patch_mask=torch.ones((len(tiles), side, side), dtype=torch.bool),
        original_size=image.size,
        grid=(rows, columns),
        tokens=len(tiles) * each,
        attended=len(tiles) * each,
        text=image_text(rows, columns, each),
    )


def image_text(rows: int, columns: int, each: int) -> str:
    """What the processor writes for an image of `rows` x `columns` tiles of `each` image tokens."""
    tile = IMAGE_TOKEN * each
    line = NEXT_COLUMN.join([tile] * columns) + NEXT_ROW
    return START + (line * rows if rows * columns > 1 else "") + IMAGE + tile + END


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Output of the encoder's last norm for each image, [tiles, patches and CLS, vision width]."""
    tower: Any = model.get_submodule(VISION_TOWER)
    normed: list[Tensor] = []

    def keep(_module: object, _args: object, output: Tensor) -> None:
        normed.append(output)

    def run(tiles: Tensor) -> Tensor:
        tower(tiles)
        return normed.pop()

    hook = model.get_submodule(LAST_NORM).register_forward_hook(keep)
    try:
        yield from encode_tiles(tower, images, run)
    finally:
        hook.remove()


def useful_patches(image: ImageInputs) -> Tensor:
    """Every patch, without CLS, which stands after them: the model drops it."""
    patches = image.patch_mask.flatten(1)
    return torch.cat([patches, torch.zeros_like(patches[:, :1])], dim=1)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """Patches joined two by two, and projected."""
    hf_model: Any = model
    return hf_model.multi_modal_projector(hf_model.vision_model.vision_adapter(features[:, :-1])).flatten(0, 1)


def fix_class(model: nn.Module) -> tuple[str, ...]:
    """Both fixes."""
    return (*count_positions(model), *add_image_outputs(model))


def add_image_outputs(model: nn.Module) -> tuple[str, ...]:
    """Gives the language model's output the field that the whole class of transformers 5.24 reads, and it lacks.

    Without it every call of the class fails there. midsight calls the decoder alone, and the class as a reference.
    """
    language_model: Any = model.get_submodule("language_model")
    is_read = "image_outputs" in Llama4CausalLMOutputWithPast.__dataclass_fields__
    if not is_read or hasattr(language_model, "adds_image_outputs"):
        return ()

    def add(_module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, ModelOutput) and not hasattr(output, "image_outputs"):
            output.image_outputs = None

    language_model.register_forward_hook(add)
    language_model.adds_image_outputs = True
    return ("language_model: its output has image_outputs, without which transformers 5.24 fails",)


def count_positions(model: nn.Module) -> tuple[str, ...]:
    """Makes the attention temperature follow the position of a token in its prompt.

    transformers counts the tokens before it in its row: padding and other prompts too. The fix is made of hooks, since
    libraries that move or shard layers replace their classes and forwards.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, Llama4TextDecoderLayer) and layer.self_attn.attn_temperature_tuning
    ]
    tuned = [layer for layer in layers if not layer.self_attn.use_rope]
    for layer in tuned:
        count_positions_in(layer)
    if not tuned:
        return ()
    return (
        f"language_model: the attention temperature follows a token's position in its prompt in "
        f"{counted(len(tuned), 'layer')} (transformers counts padding and other prompts of the row too)",
    )


def count_positions_in(layer: Any) -> None:
    """Scales the queries of a layer without rotary embedding by the positions that it is given.

    The hooks find the modules at each call: PEFT puts its own around them, and a copy of the model has its own.
    """
    floor_scale, attn_scale = layer.self_attn.floor_scale, layer.self_attn.attn_scale

    def scale(projection: Any, _args: Any, queries: Tensor) -> Tensor:
        positions = vars(projection).pop("positions_of_queries", None)
        if positions is None:  # a part of PEFT's module, which is scaled as a whole
            return queries
        steps = torch.floor((positions.to(queries.device).float() + 1) / floor_scale)
        return (queries * (torch.log1p(steps) * attn_scale + 1)[..., None]).to(queries.dtype)

    def note(called: Any, _args: Any, arguments: dict[str, Any]) -> None:
        projection = called.self_attn.q_proj
        projection.positions_of_queries = arguments["position_ids"]
        if "scales_queries" not in vars(projection):
            projection.register_forward_hook(scale)
            projection.scales_queries = True

    layer.register_forward_pre_hook(note, with_kwargs=True)
    layer.self_attn.attn_temperature_tuning = False


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"ViT, {vision.num_hidden_layers} layers, tiles of {vision.image_size} px in patches of {vision.patch_size}, "
        "and the whole image"
    )


FAMILY = Family(
    name="Llama 4",
    architecture="Llama4ForConditionalGeneration",
    modules=Modules(
        decoder="language_model.model",
        layers="language_model.model.layers",
        final_norm="language_model.model.norm",
        token_embedding="language_model.model.embed_tokens",  # noqa: S106  (a module path)
        lm_head="language_model.lm_head",
        vision_tower=VISION_TOWER,
    ),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        template_token=IMAGE,
        placeholder=r"<\|(image(_start|_end)?|tile_[xy]_separator|patch|python_(start|end)|eom|step)\|>",
        published=(
            f"<|begin_of_text|><|header_start|>user<|header_end|>\n\n{IMAGE}{{question}}<|eot|>"
            "<|header_start|>assistant<|header_end|>\n\n"
        ),
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_model layernorm_post, before patches are joined, without CLS",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
        resizings=("transformers",),
    ),
    stored=StoredTensors(fixes=fix_class),
    reference=Reference(tower_feature=split_by_image, module=LAST_NORM),
)
