"""What a model family declares. Plain functions elsewhere act on it; check_adapter proves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Cache

KVCache = Cache
"""Keys and values of every decoder layer, as transformers keeps them."""

Pixels = Literal["pil", "transformers"]
"""Which resizing makes the model's pixels: PIL's on 8-bit images, or transformers' own on tensors."""


@dataclass(frozen=True)
class ImageInputs:
    """One image as the vision encoder takes it, without padding crops."""

    pixel_values: Tensor
    """float32 [crops, 3, height, width], the global crop first where the family has one."""
    patch_mask: Tensor
    """bool [crops, patch rows, patch columns], True where a patch shows the image."""
    grid: tuple[int, int]
    """Rows and columns of sub-crops."""
    tokens: int
    """Image tokens that stand for it in the prompt."""


@dataclass(frozen=True)
class PromptText:
    """A prompt as text, each image one image token."""

    text: str
    """What the tokenizer gets."""
    question: tuple[int, int]
    """Start and stop of the user's text, in characters."""


@dataclass(frozen=True)
class EncodedImage:
    """One image after the vision encoder: what the decoder and the vision columns need of it."""

    embeddings: Tensor
    """Model dtype [image tokens, hidden size], in the order of the prompt's image tokens."""
    patch_sum: Tensor
    """float32 [vision width]: the feature layer summed over all useful patches of all crops."""
    patch_count: int
    """Number of those patches."""


class RenderPrompt(Protocol):
    """Builds the prompt of one sample."""

    def __call__(self, user_text: str, question: tuple[int, int], n_images: int, system: str | None) -> PromptText:
        """`question` is where the question stands inside `user_text`, in characters."""
        ...


@dataclass(frozen=True)
class Adapter:
    """One model family, declared: where things are and how its parts are called."""

    family: str
    """Name for people, as in `Phi-4-multimodal`."""
    architecture: str
    """transformers' class, as in config.json's `architectures`."""
    decoder: str
    """Module path of the decoder without language-model head."""
    layers: str
    """Module path of the list of decoder layers."""
    final_norm: str
    """Module path of the norm after the last layer."""
    token_embedding: str
    """Module path of the token embedding."""
    lm_head: str
    """Module path of the language-model head."""
    vision_tower: str
    """Module path of the vision encoder."""
    image_token: str
    """The token that stands for image content in the prompt."""
    placeholder: str
    """Pattern of image and audio placeholders that a prompt's text may not contain."""
    default_pixels: Pixels
    """The resizing that the published model was trained with."""
    check_image_processor: Callable[[Any], None]
    """Image processor, as the folder's preprocessor_config.json makes it; raises MidsightError where it cannot work."""
    crop_px: Callable[[Any], int]
    """Image processor -> side of a square crop, in pixels."""
    lora_folder: str | None
    """Folder, inside the model's, of the LoRA that image input needs."""
    unused_modules: Mapping[str, str]
    """Name and module path of the parts that no image prompt uses; they are loaded only when asked for."""
    mends: Callable[[nn.Module], tuple[str, ...]]
    """Corrects the loaded model's known defects and says what it changed, a sentence each."""
    longrope_border: Callable[[Any], int | None]
    """Config -> longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
    vision_width: Callable[[Any], int]
    """Config -> width of the vision encoder's feature layer."""
    render_prompt: RenderPrompt
    """Builds the prompt's text."""
    image_inputs: Callable[[Any, Image.Image, Pixels], ImageInputs]
    """Image processor, RGB image, resizing -> what the encoder takes; raises SampleError."""
    encode_crops: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """Model, pixel_values [crops, 3, h, w], patch_mask [crops, rows, columns] -> feature layer
    [crops, patches, vision width]; nothing behind the feature layer is computed."""
    useful_patches: Callable[[ImageInputs], Tensor]
    """Image -> bool [crops, patches]: the patches whose content reaches the decoder."""
    shares_image_prefix: bool
    """Whether states up to the last image token are the same for every question on the same images."""
    forward_inputs: Callable[[Sequence[ImageInputs]], dict[str, Tensor]]
    """Images of one prompt -> what transformers' own full forward takes beside input_ids; for proofs."""
    tower_feature: Callable[[Any], Tensor]
    """Output of the tower's own forward in that full forward -> the feature layer."""
    image_embeddings: Callable[[nn.Module, Tensor, ImageInputs], Tensor]
    """Model, features [crops, patches, vision width] of one image, image -> [image tokens, hidden size],
    in the order of the prompt's image tokens."""


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path of the plain (not PEFT-wrapped) model."""
    return model.get_submodule(path)


def decoder_layers(model: nn.Module, adapter: Adapter) -> Sequence[nn.Module]:
    """The decoder layers, in order."""
    layers = submodule(model, adapter.layers)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(f"{adapter.family} declares {adapter.layers} as decoder layers, but it is a {type(layers)}.")
    return list(layers)


def encode_images(
    model: nn.Module, adapter: Adapter, images: Sequence[ImageInputs], *, crops_per_call: int = 16
) -> list[EncodedImage]:
    """Each image through the vision encoder and into the decoder's width; only real crops are computed.

    Crops of all images go through together, at most `crops_per_call` at a time, which bounds memory.
    """
    device = next(submodule(model, adapter.vision_tower).parameters()).device
    pixel_values = torch.cat([image.pixel_values for image in images])
    patch_mask = torch.cat([image.patch_mask for image in images])
    calls = zip(pixel_values.split(crops_per_call), patch_mask.split(crops_per_call), strict=True)
    features = torch.cat([adapter.encode_crops(model, p.to(device), m.to(device)) for p, m in calls])
    by_image = features.split([len(image.pixel_values) for image in images])

    def encode(image: ImageInputs, crops: Tensor) -> EncodedImage:
        useful = crops[adapter.useful_patches(image).to(device)].float()
        return EncodedImage(adapter.image_embeddings(model, crops, image), useful.sum(dim=0), len(useful))

    return [encode(image, crops) for image, crops in zip(images, by_image, strict=True)]


def mean_over_patches(images: Sequence[EncodedImage]) -> Tensor:
    """Mean over all useful patches of all crops of all images, float32 [vision width]."""
    return torch.stack([image.patch_sum for image in images]).sum(dim=0) / sum(image.patch_count for image in images)
