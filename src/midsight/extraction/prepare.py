"""From a sample to the model's inputs: images decoded and cut into crops, prompt tokenised."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch
from PIL import Image
from rich.filesize import decimal
from torch import Tensor

from midsight.buckets.path import BucketPath
from midsight.checkpoints.loading import LoadedModel
from midsight.errors import Option, SampleError, UnreachableError, first_line, is_failure
from midsight.extraction.request import ResolvedRequest
from midsight.families.family import MakeImageInputs, image_maker
from midsight.families.inputs import ImageInputs
from midsight.prompts.image_places import UserTurn
from midsight.prompts.prompt import PromptTokens, tokenise_prompt
from midsight.prompts.token_layout import Span
from midsight.samples.images import Note, decode_image, image_id, joint_image_id, say_nothing
from midsight.samples.locations import EmbeddedImage, ImageUrl
from midsight.samples.sample import Failure, ImageSource, Sample

MOST_BYTES = 2 * 10**9
"""Maximum size of the pixels of one sample, as the vision encoder takes them."""


@dataclass(frozen=True)
class PreparedImage:
    """One image: its identity, and its pixels as the vision encoder takes them."""

    image_id: str
    """SHA-256 of its decoded pixels."""
    inputs: ImageInputs
    """For the vision encoder."""


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for the model."""

    sample: Sample
    """The sample as the dataset gives it."""
    image_id: str
    """SHA-256 of the decoded pixels."""
    images: tuple[ImageInputs, ...]
    """In the order of the prompt; samples of one window share the objects of a shared image."""
    prompt: PromptTokens
    """Without padding."""
    positions: Tensor
    """int64 [axes, tokens]: the decoder's position of each token."""
    reads_ahead: Span | None = None
    """From the first to the last token that reads others after it; None if every token reads backwards only."""
    marks_after_image: int = 0
    """How many tokens right after the last image token have embeddings of their own."""

    @property
    def prefix_length(self) -> int:
        """Tokens of the prompt up to its last image token, inclusive, and up to the last one that image tokens read.

        With those after it that have embeddings of their own.
        """
        end = self.prompt.layout.vision_token + 1 + self.marks_after_image
        return end if self.reads_ahead is None else max(end, self.reads_ahead.stop)

    @property
    def prefix_key(self) -> Hashable:
        """Equal for prompts with the same prefix: the same tokens up to its end, and the same images.

        Then the states of those tokens are the same, because they do not depend on the question.
        """
        return self.prompt.token_ids[: self.prefix_length], tuple(map(id, self.images))


def source_key(source: ImageSource) -> Hashable:
    """Equal for the same image: its location, or the id of an object in memory."""
    return source if isinstance(source, Path | BucketPath | EmbeddedImage | ImageUrl) else id(source)


def prepare(
    model: LoadedModel, request: ResolvedRequest, samples: Sequence[Sample], note: Note = say_nothing
) -> list[PreparedSample | Failure]:
    """Each sample ready for the model, or a failure with the reason; an image shared by samples is prepared once."""
    prepared_images: dict[Hashable, PreparedImage] = {}

    def prepare_image(source: ImageSource, sample_id: str, make: MakeImageInputs) -> PreparedImage:
        key = source_key(source), make
        if key not in prepared_images:
            image = decode_image(source, note=note_of(source, sample_id, note))
            inputs = make(model.processor, image, request.pixels, model.config)
            prepared_images[key] = PreparedImage(image_id(image), inputs)
        return prepared_images[key]

    def prepare_sample(sample: Sample) -> PreparedSample | Failure:
        try:
            if not sample.images:
                raise SampleError("The sample has no image; midsight extracts from image-question pairs.")
            turn = request.prompt.turn(sample)
            make, images = image_maker(model.family.vision, len(turn.images)), []
            for source in sample.images:
                images.append(prepare_image(source, sample.sample_id, make))
                require_bounded(images, len(sample.images), model.max_prompt_tokens)
            inputs = tuple(images[index].inputs for index in turn.images)
            prompt = prepare_prompt(model, request, turn, inputs)
            positions = model.family.decoder.positions(prompt.layout, inputs)
        except SampleError as error:
            return Failure(sample.sample_id, sample.input_index, str(error))
        except UnreachableError:  # a network that fails says nothing about the sample
            raise
        except BaseException as error:  # a library may raise anything for a sample; the others are still extracted
            if not is_failure(error):
                raise
            reason = f"The sample could not be prepared: {type(error).__name__}: {first_line(error)}."
            return Failure(sample.sample_id, sample.input_index, reason)
        joint_id = joint_image_id([image.image_id for image in images])
        ahead, marks = reads_ahead(model, prompt), marks_after_image(model, prompt)
        return PreparedSample(sample, joint_id, inputs, prompt, positions, ahead, marks)

    return [prepare_sample(sample) for sample in samples]


def reads_ahead(model: LoadedModel, prompt: PromptTokens) -> Span | None:
    """From the first to the last token of a prompt that reads others after it; None if none does."""
    decoder = model.family.decoder
    if not decoder.images_read_ahead:
        return None
    blocks = decoder.blocks(model.config, torch.tensor([prompt.token_ids]), [prompt.layout])[0]
    inside = (blocks >= 0).nonzero()[:, 0].tolist()
    return Span(inside[0], inside[-1] + 1) if inside else None


def marks_after_image(model: LoadedModel, prompt: PromptTokens) -> int:
    """How many tokens right after the last image token have embeddings of their own."""
    marks = model.family.decoder.image_marks(model.config)
    after = prompt.token_ids[prompt.layout.vision_token + 1 :] if marks and prompt.layout.image else ()
    return sum(1 for _ in takewhile(lambda token_id: token_id in marks, after))


def note_of(source: ImageSource, sample_id: str, note: Note) -> Note:
    """The note for an image; one in memory has no name, so that the sample's id is said."""
    if isinstance(source, bytes | Image.Image):
        return lambda sentence: note(f"Sample {sample_id}: {sentence}")
    return note


def require_bounded(images: Sequence[PreparedImage], wanted: int, longest: int | None) -> None:
    """Raises SampleError if the first images of a sample are more than one sample may have.

    `wanted` is the number of its images, `longest` the model's maximum of prompt tokens.
    """
    tokens = sum(image.inputs.tokens for image in images)
    if longest is not None and tokens > longest:
        raise SampleError(
            f"{_first(len(images), wanted)} would need {tokens:,} image tokens, and the model takes {longest:,}; give "
            "fewer or smaller images."
        )
    size = sum(inputs.nbytes for inputs in {id(image): image.inputs for image in images}.values())
    if size > MOST_BYTES:
        raise SampleError(
            f"{_first(len(images), wanted)} would take {decimal(size)} as the model's input, and a sample may have "
            f"{decimal(MOST_BYTES)}; give fewer or smaller images."
        )


def _first(images: int, wanted: int) -> str:
    """The first images of a sample that has `wanted`, in words."""
    if wanted == 1:
        return "The sample's image"
    return f"The first {f'{images:,} ' if images > 1 else ''}of the sample's {wanted:,} images"


def prepare_prompt(
    model: LoadedModel, request: ResolvedRequest, turn: UserTurn, images: Sequence[ImageInputs]
) -> PromptTokens:
    """The prompt of a turn on these images, in its order; raises SampleError if it is longer than the model takes."""
    tokens, texts = [image.tokens for image in images], [image.text for image in images]
    prompt = tokenise_prompt(model.processor, model.family.prompt, request.prompt, turn, tokens, texts)
    longest = model.max_prompt_tokens
    if longest is not None and len(prompt.token_ids) > longest:
        raise SampleError(
            f"The prompt has {len(prompt.token_ids):,} tokens, and the model takes {longest:,}; shorten the question."
        )
    require_same_factors(len(prompt.token_ids), request.answer_tokens, model.rotary_limit)
    return prompt


def require_same_factors(prompt_tokens: int, answer_tokens: int, limit: int | None) -> None:
    """Raises SampleError if the answer may go on where other rotary factors than the prompt's would be due."""
    if limit is not None and prompt_tokens + answer_tokens - 1 > limit:  # the last token is not fed to the decoder
        raise SampleError(
            f"The prompt has {prompt_tokens:,} tokens, and with an answer of {answer_tokens:,} it would pass the "
            f"{limit:,} after which the model changes its rotary factors; give ",
            Option("max_new_tokens", limit + 1 - prompt_tokens),
            " or less, or shorten the question.",
        )


def pooled_pixels(images: Sequence[ImageInputs]) -> Tensor:
    """The processor's tensor [1, crops, 3, height, width], averaged over dim 1 until two dims are left.

    This is what earlier scripts stored as `vision_only_representation`: float32 [width in pixels],
    the brightness of pixel columns. Several images are averaged.
    """

    def average(image: ImageInputs) -> Tensor:
        pixels = image.pixel_values.unsqueeze(0)
        while pixels.dim() > 2:
            pixels = pixels.mean(dim=1)
        return pixels[0]

    return torch.stack([average(image) for image in images]).mean(dim=0)
