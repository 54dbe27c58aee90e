"""From a sample to the model's inputs: images decoded and cut into crops, prompt tokenised."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from midsight.errors import SampleError, first_line
from midsight.extraction.request import Plan
from midsight.models.adapter import ImageInputs
from midsight.models.loading import LoadedModel
from midsight.models.prompts import PromptTokens, tokenise_prompt
from midsight.samples.images import decode_image, image_id, joint_image_id
from midsight.samples.places import ImageUrl, StoredImage
from midsight.samples.sample import Failure, ImageSource, Sample


@dataclass(frozen=True)
class PreparedImage:
    """One image, decoded and as the vision encoder takes it."""

    image_id: str
    """SHA-256 of its decoded pixels."""
    inputs: ImageInputs
    """For the vision encoder."""


@dataclass(frozen=True)
class PreparedSample:
    """A sample ready for the model."""

    sample: Sample
    """As it came."""
    image_id: str
    """SHA-256 of the decoded pixels."""
    images: tuple[ImageInputs, ...]
    """In the order of the prompt; samples of one batch share the objects of a shared image."""
    prompt: PromptTokens
    """Without padding."""
    positions: Tensor
    """int64 [axes, tokens]: where the decoder takes each token to be."""


def source_key(source: ImageSource) -> Hashable:
    """The same for the same image: its place, or for one in memory the object."""
    return source if isinstance(source, Path | StoredImage | ImageUrl) else id(source)


def prepare(model: LoadedModel, plan: Plan, samples: Sequence[Sample]) -> list[PreparedSample | Failure]:
    """Each sample ready for the model, or why it cannot be; an image shared by samples is prepared once."""
    prepared_images: dict[Hashable, PreparedImage] = {}

    def prepare_image(source: ImageSource) -> PreparedImage:
        key = source_key(source)
        if key not in prepared_images:
            image = decode_image(source)
            inputs = model.adapter.image_inputs(model.image_processor, image, plan.pixels, model.config)
            prepared_images[key] = PreparedImage(image_id(image), inputs)
        return prepared_images[key]

    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)

    def prepare_sample(sample: Sample) -> PreparedSample | Failure:
        try:
            if not sample.images:
                raise SampleError("The sample has no image; midsight extracts from image-question pairs.")
            images = [prepare_image(source) for source in sample.images]
            prompt = tokenise_prompt(
                model.tokenizer, model.adapter, plan.template, sample.question, [i.inputs.tokens for i in images]
            )
            if longest is not None and len(prompt.token_ids) > longest:
                tokens = f"{len(prompt.token_ids):,} tokens, and the model takes {longest:,}"
                raise SampleError(f"The prompt has {tokens}; shorten the question.")
        except SampleError as error:
            return Failure(sample.sample_id, sample.input_index, str(error))
        except Exception as error:  # whatever an image does to a library, the other samples are extracted
            reason = f"The sample could not be prepared: {type(error).__name__}: {first_line(error)}."
            return Failure(sample.sample_id, sample.input_index, reason)
        identity = joint_image_id([image.image_id for image in images])
        inputs = tuple(image.inputs for image in images)
        return PreparedSample(sample, identity, inputs, prompt, model.adapter.positions(prompt.layout, inputs))

    return [prepare_sample(sample) for sample in samples]


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
