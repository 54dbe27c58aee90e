"""Llama 3.2 Vision: a tiled encoder; 8 of the decoder's 40 layers read its states by cross-attention.

Source of the prompt: the chat template of meta-llama/Llama-3.2-11B-Vision-Instruct; of tiles and
modules: transformers' image_processing_mllama.py and modeling_mllama.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import MllamaImageProcessor, MllamaImageProcessorPil
from transformers.models.mllama.image_processing_mllama import get_all_supported_aspect_ratios
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer
from transformers.models.mllama.processing_mllama import (
    build_string_from_input,
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from midsight.errors import ModelFileError, counted
from midsight.families.family import Decoder, Family, Modules, Reference, StoredTensors, Vision
from midsight.families.inputs import DecoderInputs, EncodedImage, ImageInputs
from midsight.families.placement import device_of
from midsight.families.resizing import Pixels, with_resizing
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout

IMAGE_TOKEN = "<|image|>"  # noqa: S105  (a token of the vocabulary, no password)
VISION_TOWER = "model.vision_model"
PROJECTOR = "model.multi_modal_projector"
IMAGES_PER_CALL = 4
"""Images of four tiles each that go through the encoder together, which bounds its memory."""


def validate_processor(processor: Any, config: Any) -> None:
    """Raises ModelFileError if the processor cuts other tiles than the encoder takes."""
    vision, image_processor = config.vision_config, processor.image_processor
    found = (image_processor.size["height"], image_processor.max_image_tiles)
    if found != (vision.image_size, vision.max_num_tiles):
        raise ModelFileError(
            f"preprocessor_config.json makes up to {found[1]} tiles of {found[0]} pixels, and config.json has "
            f"{vision.max_num_tiles} of {vision.image_size}"
        )


def patches_per_side(config: Any) -> int:
    """Patches in a row of a tile."""
    return config.vision_config.image_size // config.vision_config.patch_size


def image_inputs(processor: Any, image: Image.Image, pixels: Pixels, config: Any) -> ImageInputs:
    """Runs the folder's own image processor on one RGB image.

    All tiles are kept: in the encoder the image's patches attend to those of padding tiles.
    """
    image_processor = with_resizing(
        processor.image_processor, pixels, pil=MllamaImageProcessorPil, tensors=MllamaImageProcessor
    )
    processed = image_processor(image, return_tensors="pt")
    pixel_values = processed["pixel_values"][0, 0]
    largest = len(pixel_values)
    rows, columns = get_all_supported_aspect_ratios(largest)[int(processed["aspect_ratio_ids"][0, 0]) - 1]
    side = patches_per_side(config)
    patch_mask = torch.zeros((largest, side, side), dtype=torch.bool)
    patch_mask[: rows * columns] = True
    return ImageInputs(
        pixel_values=pixel_values,
        patch_mask=patch_mask,
        original_size=image.size,
        grid=(rows, columns),
        tokens=1,
        attended=rows * columns * (side * side + 1),
    )


def tiles_of(images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """Several images of one prompt as the encoder's forward takes them, [1, images, tiles, ...]."""
    largest = len(images[0].pixel_values)
    ratios = get_all_supported_aspect_ratios(largest)
    counts = torch.tensor([rows * columns for rows, columns in (image.grid for image in images)])
    return {
        "pixel_values": torch.stack([image.pixel_values for image in images])[None],
        "aspect_ratio_ids": torch.tensor([[ratios.index(image.grid) + 1 for image in images]]),
        "aspect_ratio_mask": (torch.arange(largest) < counts[:, None]).long()[None],
    }


def encode(model: nn.Module, images: Sequence[ImageInputs]) -> Iterator[Tensor]:
    """Output of the vision model for each image, [tiles, patches with CLS, vision width], padding tiles included."""
    tower: Any = model.get_submodule(VISION_TOWER)
    device = device_of(tower)
    for start in range(0, len(images), IMAGES_PER_CALL):
        tiles = tiles_of(images[start : start + IMAGES_PER_CALL])
        yield from tower(**{name: value.to(device) for name, value in tiles.items()}).last_hidden_state[0]


def useful_patches(image: ImageInputs) -> Tensor:
    """Every position of the real tiles, bool [tiles, patches with CLS]. CLS counts, since the decoder reads it."""
    patches = image.patch_mask.flatten(1)
    return torch.cat([patches[:, :1], patches], dim=1)


def image_embeddings(model: nn.Module, features: Tensor, _image: ImageInputs) -> Tensor:
    """The states that cross-attention reads: all positions of all tiles, real tiles first."""
    return model.get_submodule(PROJECTOR)(features).flatten(0, 1)


def decoder_inputs(
    _model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Tokens, the states of each row's images for cross-attention, and the masks that say which token reads which.

    A token reads the real tiles of the images that come last before it: those whose `<|image|>` stand side by side,
    without text between them. A token before all images reads nothing; its row of the mask is open all the same, since
    softmax over a fully masked row is NaN.
    """
    states = nn.utils.rnn.pad_sequence([torch.cat([i.embeddings for i in row]) for row in images], batch_first=True)
    batch, tokens = token_ids.shape
    reads = torch.zeros((batch, tokens, states.shape[1]), dtype=torch.bool)
    for row, layout in enumerate(layouts):
        start = 0
        for encoded, position in zip(images[row], layout.image_indices(), strict=True):
            end = min((run.start for run in layout.image if run.start > position), default=tokens)
            reads[row, int(position) : end, start : start + encoded.image.attended] = True
            start += len(encoded.embeddings)
    sees_image = reads.any(dim=2, keepdim=True)
    hidden = (sees_image & ~reads).to(states.device)
    mask = torch.zeros(hidden.shape, dtype=states.dtype, device=states.device)
    mask = mask.masked_fill(hidden, torch.finfo(states.dtype).min)[:, None]
    is_open = sees_image.to(states.device, states.dtype)[:, None]
    ends = [layout.query_token for layout in layouts]
    later = {
        "cross_attention_mask": mask[range(batch), :, ends][:, :, None],
        "full_text_row_masked_out_mask": is_open[range(batch), :, ends][:, :, None],
    }
    prefill = {
        "input_ids": token_ids,
        "cross_attention_states": states,
        "cross_attention_mask": mask,
        "full_text_row_masked_out_mask": is_open,
    }
    return DecoderInputs(prefill, later)


def silence_before_images(model: nn.Module) -> tuple[str, ...]:
    """Makes tokens before the first image take nothing from cross-attention.

    Meta's code multiplies the attention output of such a token, and its MLP output, by zero. transformers opens the
    token's mask, so that it reads every tile, padding included, and zeroes the MLP output alone. The fix is made of
    hooks, since libraries that move or shard layers replace their classes and forwards.
    """
    layers = model.get_submodule("model.language_model.layers").children()
    defective = [
        layer
        for layer in layers
        if isinstance(layer, MllamaCrossAttentionDecoderLayer) and not hasattr(layer, "silent_before_images")
    ]
    for layer in defective:
        silence_layer(layer)
    if not defective:
        return ()
    return (
        f"model.language_model: tokens before an image do not attend to it in {counted(len(defective), 'layer')} "
        "(transformers lets them attend to it)",
    )


def silence_layer(layer: Any) -> None:
    """Multiplies the layer's cross-attention by `full_text_row_masked_out_mask`, which is 0 before the first image."""
    seen: dict[str, Tensor | None] = {}

    def note(_layer: nn.Module, _args: Any, arguments: dict[str, Any]) -> None:
        seen["mask"] = arguments["full_text_row_masked_out_mask"]

    def silence(_attention: nn.Module, _args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        mask = seen.pop("mask")
        return (output[0] if mask is None else output[0] * mask[:, 0].to(output[0].device), *output[1:])

    layer.register_forward_pre_hook(note, with_kwargs=True)
    layer.cross_attn.register_forward_hook(silence)
    layer.silent_before_images = True


def forward_inputs(config: Any, token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """The image inputs of MllamaForConditionalGeneration.forward, the mask made by transformers' own functions."""
    tiles = tiles_of(images)
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(token_ids[0].tolist(), config.image_token_index)],
        num_tiles=[tiles["aspect_ratio_mask"][0].sum(dim=1).tolist()],
        max_num_tiles=len(images[0].pixel_values),
        length=token_ids.shape[1],
    )
    return {**tiles, "cross_attention_mask": torch.from_numpy(mask)}


def describe_encoder(config: Any) -> str:
    """What the vision encoder is, in words."""
    vision = config.vision_config
    return (
        f"ViT, {vision.num_hidden_layers} + {vision.num_global_layers} layers, up to {vision.max_num_tiles} tiles of "
        f"{vision.image_size} px in patches of {vision.patch_size}"
    )


FAMILY = Family(
    name="Llama 3.2 Vision",
    architecture="MllamaForConditionalGeneration",
    modules=Modules(vision_tower=VISION_TOWER),
    prompt=FamilyPrompt(
        image_token=IMAGE_TOKEN,
        image_token_id=lambda config: config.image_token_index,
        complete_text=lambda text, tokenizer: build_string_from_input(text, tokenizer.bos_token, IMAGE_TOKEN),
        published=(
            f"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n{IMAGE_TOKEN}{{question}}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
        placeholder=r"<\|(begin_of_text|end_of_text|finetune_right_pad_id|step_id|eom_id|python_tag)\|>",
    ),
    vision=Vision(
        describe=describe_encoder,
        feature_source="vision_model forward: last_hidden_state of the real tiles, CLS too",
        image_inputs=image_inputs,
        encode=encode,
        useful_patches=useful_patches,
        image_embeddings=image_embeddings,
        width=lambda config: config.vision_config.vision_output_dim,
        validate_processor=validate_processor,
        crop_px=lambda config: config.vision_config.image_size,
    ),
    decoder=Decoder(inputs=decoder_inputs, pads_images=True),
    stored=StoredTensors(
        older_names={
            r"^language_model\.lm_head\.": "lm_head.",
            r"^language_model\.model\.": "model.language_model.",
            r"^(vision_model|multi_modal_projector)\.": r"model.\1.",
        },
        fixes=silence_before_images,
    ),
    reference=Reference(
        tower_feature=lambda output, _images: list(output.last_hidden_state[0]), forward_inputs=forward_inputs
    ),
)
