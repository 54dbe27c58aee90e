"""What a model family declares. Plain functions elsewhere act on it; check_adapter proves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Cache

from midsight.models.layout import TokenLayout

KVCache = Cache
"""Keys and values of every decoder layer, as transformers keeps them."""

Pixels = Literal["pil", "transformers"]
"""Which resizing makes the model's pixels: PIL's on 8-bit images, or transformers' own on tensors."""


@dataclass(frozen=True)
class ImageInputs:
    """One image as the vision encoder takes it."""

    pixel_values: Tensor
    """float32, what the processor made of it: [crops, 3, height, width], or [patches, values] where nothing is cut
    into crops. Padding crops only where the encoder's numbers depend on them."""
    patch_mask: Tensor
    """bool [crops, patch rows, patch columns], True where a patch is the image's."""
    grid: tuple[int, int]
    """Rows and columns that the image is laid out in: of sub-crops, of tiles, or of patches."""
    tokens: int
    """Image tokens that stand for it in the prompt."""
    attended: int
    """How many of its embeddings question and answer attend to, the first ones: `tokens`, or of the states that
    cross-attention reads those that are no padding."""


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

    image: ImageInputs
    """What was encoded."""
    embeddings: Tensor
    """Model dtype [rows, hidden size]: one for each of the prompt's image tokens, in their order, or the states
    that cross-attention reads."""
    patch_sum: Tensor
    """float32 [vision width]: the feature layer summed over all useful patches."""
    patch_count: int
    """Number of those patches."""


@dataclass(frozen=True)
class DecoderInputs:
    """What the decoder takes beside attention mask, positions and cache."""

    prefill: Mapping[str, Tensor]
    """For whole prompts, tokens or their embeddings among it."""
    later: Mapping[str, Tensor]
    """For every later call on the cache beside its tokens; batch first, one value for all tokens of a row."""


class RenderPrompt(Protocol):
    """Builds the prompt of one sample."""

    def __call__(self, user_text: str, question: tuple[int, int], n_images: int, system: str | None) -> PromptText:
        """`question` is where the question stands inside `user_text`, in characters."""
        ...


class MakeDecoderInputs(Protocol):
    """Brings prompts and their images together."""

    def __call__(
        self,
        model: nn.Module,
        token_ids: Tensor,
        layouts: Sequence[TokenLayout],
        images: Sequence[Sequence[EncodedImage]],
        /,
    ) -> DecoderInputs:
        """`token_ids` int64 [batch, tokens], `layouts` those of the padded rows, `images` of each row in order."""
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
    vision_encoder: Callable[[Any], str]
    """Config -> what the vision encoder is, in words."""
    vision_access: str
    """Where its features are taken, in words."""
    image_token: str
    """The token that stands for image content in the prompt."""
    image_token_id: Callable[[Any], int]
    """Config -> its id."""
    placeholder: str | None
    """Pattern of image and audio placeholders, beside the tokenizer's own tokens, that a prompt may not contain."""
    default_pixels: Pixels
    """The resizing that the published model was trained with."""
    check_image_processor: Callable[[Any, Any], None]
    """Image processor, as the folder's preprocessor_config.json makes it, and config; raises MidsightError where
    it cannot work."""
    crop_px: Callable[[Any], int] | None
    """Image processor -> side of a square crop, in pixels; None where nothing is cut into crops."""
    processor_columns: Callable[[Any], int] | None
    """Config -> the same side; None where nothing is cut into crops."""
    lora_folder: str | None
    """Folder, inside the model's, of the LoRA that image input needs."""
    unused_modules: Mapping[str, str]
    """Name and module path of the parts that no image prompt uses; they are loaded only when asked for."""
    older_names: Mapping[str, str]
    """Patterns of tensor names that published folders have and transformers renames at load, to what they become."""
    mends: Callable[[nn.Module], tuple[str, ...]]
    """Corrects the loaded model's known defects and says what it changed, a sentence each."""
    longrope_border: Callable[[Any], int | None]
    """Config -> longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
    vision_width: Callable[[Any], int]
    """Config -> width of the vision encoder's feature layer."""
    takes_system: bool
    """Whether a system turn may stand before an image."""
    render_prompt: RenderPrompt
    """Builds the prompt's text, with every token that the model was trained to see."""
    image_inputs: Callable[[Any, Image.Image, Pixels, Any], ImageInputs]
    """Image processor, RGB image, resizing, config -> what the encoder takes; raises SampleError."""
    encode: Callable[[nn.Module, Sequence[ImageInputs]], Iterable[Tensor]]
    """Model, images -> the feature layer of each, [..., vision width]; nothing behind that layer is computed
    where it can be left out. Calls of bounded size, whatever the number of images."""
    useful_patches: Callable[[ImageInputs], Tensor]
    """Image -> bool, of the features' shape without their width: the patches whose content reaches the decoder."""
    image_embeddings: Callable[[nn.Module, Tensor, ImageInputs], Tensor]
    """Model, features of one image, image -> its embeddings, [rows, hidden size], as in EncodedImage."""
    positions: Callable[[TokenLayout, Sequence[ImageInputs]], Tensor]
    """Layout of a prompt without padding, its images -> position of every token, int64 [axes, tokens]. A token
    after the last has one more than the largest, on every axis."""
    decoder_inputs: MakeDecoderInputs
    """Brings prompts and their images together."""
    shares_image_prefix: bool
    """Whether states up to the last image token are the same for every question on the same images."""
    forward_inputs: Callable[[Any, Tensor, Sequence[ImageInputs]], dict[str, Tensor]]
    """Config, token ids [1, tokens] of one prompt, its images -> what transformers' own full forward takes beside
    input_ids; for proofs."""
    tower_feature: Callable[[Any, Sequence[ImageInputs]], list[Tensor]]
    """Output of the tower's own forward in that full forward, the images -> the feature layer of each."""


def submodule(model: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path of the plain (not PEFT-wrapped) model."""
    return model.get_submodule(path)


def decoder_layers(model: nn.Module, adapter: Adapter) -> Sequence[nn.Module]:
    """The decoder layers, in order."""
    layers = submodule(model, adapter.layers)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(f"{adapter.family} declares {adapter.layers} as decoder layers, but it is a {type(layers)}.")
    return list(layers)


def encode_images(model: nn.Module, adapter: Adapter, images: Sequence[ImageInputs]) -> list[EncodedImage]:
    """Each image through the vision encoder and into the decoder's width."""

    def encode(image: ImageInputs, features: Tensor) -> EncodedImage:
        useful = features[adapter.useful_patches(image).to(features.device)].float()
        return EncodedImage(image, adapter.image_embeddings(model, features, image), useful.sum(dim=0), len(useful))

    return [encode(image, features) for image, features in zip(images, adapter.encode(model, images), strict=True)]


def mean_over_patches(images: Sequence[EncodedImage]) -> Tensor:
    """Mean over all useful patches of all crops of all images, float32 [vision width]."""
    return torch.stack([image.patch_sum for image in images]).sum(dim=0) / sum(image.patch_count for image in images)


def count_up(layout: TokenLayout, _images: Sequence[ImageInputs]) -> Tensor:
    """Positions of a decoder that counts tokens, image or not, int64 [1, tokens]."""
    return torch.arange(len(layout.prompt))[None]


def continue_positions(positions: Tensor, more: int) -> Tensor:
    """The positions and those of `more` tokens behind them, int64 [axes, tokens + more]."""
    behind = positions.max() + 1 + torch.arange(more)
    return torch.cat([positions, behind.expand(len(positions), more)], dim=1)


def place_in_sequence(
    model: nn.Module, token_ids: Tensor, layouts: Sequence[TokenLayout], images: Sequence[Sequence[EncodedImage]]
) -> DecoderInputs:
    """Token embeddings, those of image tokens replaced by the images: model dtype [batch, tokens, hidden size]."""
    hf_model: Any = model
    embeddings = hf_model.get_input_embeddings()(token_ids)
    for row, layout in enumerate(layouts):
        indices = torch.from_numpy(layout.image_indices()).to(embeddings.device)
        embeddings[row, indices] = torch.cat([image.embeddings for image in images[row]])
    return DecoderInputs({"inputs_embeds": embeddings}, {})
