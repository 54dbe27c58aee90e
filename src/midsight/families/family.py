"""What a model family declares: a few small groups of facts and functions, most with a default.

Plain functions elsewhere act on them, and `check_family` proves them on real tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from midsight.errors import MidsightError
from midsight.families.inputs import (
    DecoderInputs,
    EncodedImage,
    ImageInputs,
    image_blocks,
    insert_image_embeddings,
    sequential_positions,
)
from midsight.families.resizing import USUAL_PIXELS, Pixels
from midsight.families.rotary import fix_rotary
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.token_layout import TokenLayout


class ReadSize(Protocol):
    """Reads a number from a config."""

    def __call__(self, config: Any, /) -> int:
        """`config` is transformers' config of the whole model."""
        ...


class ReadThreshold(Protocol):
    """Reads a length from a config, or None if the model has no such length."""

    def __call__(self, config: Any, /) -> int | None:
        """`config` is transformers' config of the whole model; returns tokens."""
        ...


class ReadTokenIds(Protocol):
    """Reads token ids from a config."""

    def __call__(self, config: Any, /) -> Sequence[int]:
        """`config` is transformers' config of the whole model."""
        ...


class DescribeEncoder(Protocol):
    """Says in words what the vision encoder is."""

    def __call__(self, config: Any, /) -> str:
        """`config` is transformers' config of the whole model."""
        ...


class ValidateProcessor(Protocol):
    """Compares the folder's processor with its config."""

    def __call__(self, processor: Any, config: Any, /) -> None:
        """Raises ModelFileError if images of this processor do not fit the vision encoder."""
        ...


class MakeImageInputs(Protocol):
    """Turns an image into what the vision encoder takes."""

    def __call__(self, processor: Any, image: Image.Image, pixels: Pixels, config: Any, /) -> ImageInputs:
        """`processor` has `image_processor` and `tokenizer`, and is transformers' whole processor if the folder has
        one; `image` is RGB. Raises SampleError for an image that the model does not take.
        """
        ...


class ValidateConfig(Protocol):
    """Says whether transformers' class may be made from a config, which may come from anywhere."""

    def __call__(self, config: Any, /) -> None:
        """`config` is transformers' config of the whole model. Raises MidsightError if the class must not be made."""
        ...


class EncodeImages(Protocol):
    """Runs the vision encoder up to its feature layer."""

    def __call__(self, model: nn.Module, images: Sequence[ImageInputs], /) -> Iterable[Tensor]:
        """The feature layer of each image, model dtype [..., vision width], or [..., encoded width] with other layers
        after it.

        Layers after that one are not run if the class allows it. Each encoder call has a bounded size, whatever the
        number of images.
        """
        ...


class FindUsefulPatches(Protocol):
    """Says which patches count in the mean of the vision features."""

    def __call__(self, image: ImageInputs, /) -> Tensor:
        """bool, in the features' shape without the width: True for patches whose content reaches the decoder."""
        ...


class EmbedImage(Protocol):
    """Brings vision features into the decoder's width."""

    def __call__(self, model: nn.Module, features: Tensor, image: ImageInputs, /) -> Tensor:
        """`features` as EncodeImages gives them for one image; returns model dtype [rows, hidden size], as in
        EncodedImage.
        """
        ...


class PositionTokens(Protocol):
    """Gives every token of a prompt its position."""

    def __call__(self, layout: TokenLayout, images: Sequence[ImageInputs], /) -> Tensor:
        """`layout` is that of a prompt without padding; returns int64 [axes, tokens].

        A token after the last one has the largest position plus one, on every axis.
        """
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


class NumberBlocks(Protocol):
    """Says which tokens of whole prompts read each other in both directions."""

    def __call__(self, config: Any, token_ids: Tensor, layouts: Sequence[TokenLayout], /) -> Tensor:
        """`token_ids` int64 [rows, tokens], `layouts` those of the padded rows.

        Returns int64 [rows, tokens]: equal numbers for tokens of one row that read each other, -1 for all others.
        """
        ...


class ReadLayerState(Protocol):
    """Finds a decoder layer's hidden state in what the layer returns, or in transformers' `hidden_states`."""

    def __call__(self, config: Any, output: Tensor, /) -> Tensor:
        """`config` is transformers' config of the whole model, `output` model dtype [..., rows, tokens, hidden size].

        Returns [rows, tokens, hidden size].
        """
        ...


class AdjustLogits(Protocol):
    """Does what transformers' class does to the output of the language-model head."""

    def __call__(self, config: Any, logits: Tensor, /) -> Tensor:
        """`config` is transformers' config of the whole model, `logits` model dtype [rows, vocabulary]."""
        ...


class ApplyFixes(Protocol):
    """Corrects known bugs of a loaded model."""

    def __call__(self, model: nn.Module, /) -> tuple[str, ...]:
        """Changes the model in place, and returns one sentence for each correction; none the second time."""
        ...


class MakeForwardInputs(Protocol):
    """Makes the inputs of transformers' own full forward, for proofs."""

    def __call__(self, config: Any, token_ids: Tensor, images: Sequence[ImageInputs], /) -> dict[str, Tensor]:
        """`token_ids` int64 [1, tokens] of one prompt; returns what the forward takes in addition to `input_ids`."""
        ...


class ReadTowerFeature(Protocol):
    """Finds the feature layer in what the vision tower's own forward returns, for proofs."""

    def __call__(self, output: Any, images: Sequence[ImageInputs], /) -> list[Tensor]:
        """`output` is what the tower, or `Reference.module`, returns in the full forward; returns the feature layer of
        each image.
        """
        ...


def vision_hidden_size(config: Any) -> int:
    """The vision encoder's width, from the field that most configs have."""
    return config.vision_config.hidden_size


def accept_processor(_processor: Any, _config: Any) -> None:
    """The default: accepts every processor."""


TIMM = ("timm_backbone", "timm_wrapper", "gemma3n_vision")
"""Values of `model_type` for which transformers makes an encoder of timm's."""


def refuse_timm(config: Any, *, known: Sequence[str] = ()) -> None:
    """The default: refuses encoders of timm's, whose settings may name files and addresses of weights.

    They may be in any part of the config: transformers makes the class of a part from its `model_type`, whatever the
    part is for. `known` are the fields of the whole config whose encoder the family itself compares.
    """
    parts = [part for name, part in config.to_dict().items() if name not in known]
    while parts:
        part = parts.pop()
        if isinstance(part, Mapping):
            if part.get("model_type") in TIMM:
                raise MidsightError(
                    f"config.json has the encoder {part['model_type']}, which midsight does not know; use another "
                    "model."
                )
            parts += part.values()
        elif isinstance(part, list | tuple):
            parts += part


def no_threshold(_config: Any) -> None:
    """For decoders whose rotary factors do not change with the length."""


def no_marks(_config: Any) -> Sequence[int]:
    """For decoders that take the embeddings of all other tokens from their own table."""
    return ()


def logits_of_head(_config: Any, logits: Tensor) -> Tensor:
    """The default: the head's output as it is."""
    return logits


def softcapped_logits(config: Any, logits: Tensor) -> Tensor:
    """Logits squeezed into `final_logit_softcapping` to both sides of 0, as in Gemma 2, if the config has one."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


def no_fixes(_model: nn.Module) -> tuple[str, ...]:
    """For families without a known bug."""
    return ()


def joined_pixel_values(_config: Any, _token_ids: Tensor, images: Sequence[ImageInputs]) -> dict[str, Tensor]:
    """`pixel_values` of all images, concatenated."""
    return {"pixel_values": torch.cat([image.pixel_values for image in images])}


@dataclass(frozen=True, kw_only=True)
class Modules:
    """Where the parts of the model are: paths as in `get_submodule`."""

    decoder: str = "model.language_model"
    """The decoder without language-model head."""
    layers: str = "model.language_model.layers"
    """The list of decoder layers."""
    final_norm: str = "model.language_model.norm"
    """The norm after the last layer."""
    token_embedding: str = "model.language_model.embed_tokens"  # noqa: S105  (a module path)
    """The token embedding."""
    lm_head: str = "lm_head"
    """The language-model head."""
    vision_tower: str = "model.vision_tower"
    """The vision encoder."""
    second_vision_tower: str = ""
    """Another vision encoder, of the same image in another size; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Vision:
    """From an image to its embeddings."""

    describe: DescribeEncoder
    """What the encoder is, in words."""
    feature_source: str
    """Where its features are taken, in words."""
    image_inputs: MakeImageInputs
    """Image to encoder inputs."""
    encode: EncodeImages
    """Encoder inputs to features."""
    useful_patches: FindUsefulPatches
    """Which features count in their mean."""
    image_embeddings: EmbedImage
    """Features to embeddings in the decoder's width."""
    width: ReadSize = vision_hidden_size
    """Width of the feature layer."""
    encoded_width: ReadSize | None = None
    """Width of what `encode` gives if the decoder takes other layers too, which follow the feature layer; else None."""
    validate_processor: ValidateProcessor = accept_processor
    """Whether processor and encoder fit each other."""
    crop_px: ReadSize | None = None
    """Side of a square crop, in pixels; None if images are not cut into crops."""
    resizings: tuple[Pixels, ...] = (USUAL_PIXELS, "transformers")
    """The ways to resize that transformers has for it; the first is the one that the published model was trained
    with."""
    image_among_several: MakeImageInputs | None = None
    """Image to encoder inputs in a prompt with several images; None if that is the same."""

    @property
    def default_pixels(self) -> Pixels:
        """The resizing that the published model was trained with."""
        return self.resizings[0]


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How the decoder takes a prompt."""

    positions: PositionTokens = sequential_positions
    """Position of every token."""
    inputs: MakeDecoderInputs = insert_image_embeddings
    """Tokens and images of a batch to the decoder's inputs."""
    shares_image_prefix: bool = True
    """Whether states up to the last image token are the same for every question on the same images."""
    images_read_ahead: bool = False
    """Whether an image's tokens read each other in both directions, as in Gemma 3."""
    blocks: NumberBlocks = image_blocks
    """Which tokens they are, if so: by default the image tokens of each image."""
    only_sliding_layers_read_ahead: bool = False
    """Whether they do so in sliding layers only, and no further back than the window, as in Gemma 4."""
    image_marks: ReadTokenIds = no_marks
    """Ids of tokens around an image that have embeddings of their own, as Ovis2's end of an image. Those right after an
    image belong to what questions on the same images share."""
    pads_images: bool = False
    """Whether an image's states are padded to those of the other rows, in the cache, too, as in Llama 3.2 Vision."""
    longrope_threshold: ReadThreshold = no_threshold
    """Longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
    attention: str | None = "sdpa"
    """transformers' name of the attention kernel that a folder is loaded with; None is its own choice for each part."""
    layer_state: ReadLayerState | None = None
    """Which part of a layer's output is its hidden state, if a layer has several streams, as in Gemma 3n; then the last
    entry of transformers' `hidden_states` is the last layer's output, before they are joined and normed. None if the
    output is the hidden state."""
    adjust_logits: AdjustLogits = logits_of_head
    """What transformers' class does to the output of the language-model head."""


@dataclass(frozen=True, kw_only=True)
class StoredTensors:
    """What the family's checkpoints store, and what has to be corrected after loading."""

    older_names: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of tensor names that published folders have and transformers renames at load, each with
    its replacement."""
    unused_modules: Mapping[str, str] = field(default_factory=dict)
    """Name and module path of the parts that no image prompt uses; they are loaded only on request."""
    lora_folder: str | None = None
    """Folder, inside the model's, of a LoRA that image input needs; None if the family has none."""
    lora_parts: Mapping[str, str] = field(default_factory=dict)
    """Name and regular expression of the LoRA tensors that lie beside the weights, the one for images first; the
    others are never loaded."""
    fixes: ApplyFixes = no_fixes
    """Corrects known bugs of transformers' class."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a proof needs of transformers' own forward."""

    tower_feature: ReadTowerFeature
    """The feature layer in the tower's own output."""
    forward_inputs: MakeForwardInputs = joined_pixel_values
    """The image inputs of the full forward."""
    module: str = ""
    """Path of the module whose output holds the feature layer; empty if it is the vision encoder."""
    of_input: bool = False
    """Whether the feature layer is in what that module takes, as a tuple, and not in what it returns."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family."""

    name: str
    """For people, as in `Phi-4-multimodal`."""
    architecture: str
    """transformers' class, as in config.json's `architectures`."""
    prompt: FamilyPrompt
    """Image token and published prompt."""
    vision: Vision
    """From an image to its embeddings."""
    reference: Reference
    """What a proof needs."""
    modules: Modules = field(default_factory=Modules)
    """Where the parts of the model are."""
    decoder: Decoder = field(default_factory=Decoder)
    """How the decoder takes a prompt."""
    stored: StoredTensors = field(default_factory=StoredTensors)
    """What checkpoints store."""
    validate_config: ValidateConfig = refuse_timm
    """Whether transformers' class may be made from a config."""
    needs: Mapping[str, str] = field(default_factory=dict)
    """Packages that transformers' class needs and that a plain installation lacks, each with midsight's extra."""


def missing_package(family: Family) -> str:
    """The first package that the family needs and that is not installed; empty if there is none."""
    return next((package for package in family.needs if find_spec(package) is None), "")


def require_packages(family: Family) -> None:
    """Raises MidsightError if a package is missing that transformers' class needs."""
    package = missing_package(family)
    if package:
        raise MidsightError(
            f"{family.name} needs the package {package}, which is not installed; install it with "
            f"`pip install 'midsight[{family.needs[package]}]'`."
        )


def image_maker(vision: Vision, images: int) -> MakeImageInputs:
    """What makes the encoder's inputs for each image of a prompt that has `images` of them."""
    return vision.image_inputs if images == 1 else vision.image_among_several or vision.image_inputs


def decoder_layers(model: nn.Module, family: Family) -> Sequence[nn.Module]:
    """The decoder layers, in order; raises TypeError if the declared path is not a module list."""
    layers = model.get_submodule(family.modules.layers)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(
            f"{family.name} declares {family.modules.layers} as decoder layers, but it is a {type(layers)}."
        )
    return list(layers)


def apply_fixes(model: nn.Module, family: Family) -> tuple[str, ...]:
    """Corrects known bugs of a loaded model in place, those of its class and of its rotary embedding.

    Returns one sentence for each correction, none the second time.
    """
    return (*family.stored.fixes(model), *fix_rotary(model))


def encode_images(model: nn.Module, family: Family, images: Sequence[ImageInputs]) -> list[EncodedImage]:
    """Runs each image through the vision encoder, and brings its features into the decoder's width."""
    vision = family.vision
    hf_model: Any = model
    width = vision.width(hf_model.config)

    def encode(image: ImageInputs, features: Tensor) -> EncodedImage:
        useful = features[vision.useful_patches(image).to(features.device)][:, :width].float()
        return EncodedImage(image, vision.image_embeddings(model, features, image), useful.sum(dim=0), len(useful))

    return [encode(image, features) for image, features in zip(images, vision.encode(model, images), strict=True)]
