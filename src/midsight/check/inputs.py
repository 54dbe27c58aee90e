"""Token ids, pixels and records against what the folder's own processor makes of the same samples."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps

from midsight.check.check import Check, count
from midsight.check.full_forward import relative_error, worst
from midsight.check.subject import Subject, prepare_all
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.families.family import image_maker
from midsight.families.inputs import ImageInputs
from midsight.records import Record
from midsight.samples.images import decode_image
from midsight.samples.sample import Sample

ORIENTATION, ROTATED = 0x0112, 6
"""The EXIF tag for an image's orientation, and its value for an image to be turned by 90 degrees."""
SAME_PIXELS = 1e-6
LIMIT_OF_RESIZING = 0.02
"""Largest relative error between two ways to resize an image; the drawn images show 0.001."""


def check_prompts(subject: Subject) -> list[Check]:
    """The token ids of prompts with one image and with two; nothing if transformers makes no processor."""
    if not subject.processed:
        return []
    prepared = prepare_all(subject.model, subject.request, subject.with_pairs)
    different = sum(
        list(item.prompt.token_ids) != token_ids(own) for item, own in zip(prepared, subject.processed, strict=True)
    )
    return [count("prompts whose token ids differ from the processor's own", different)]


def token_ids(processed: Mapping[str, Any]) -> list[int]:
    """The token ids of a processor's output for one prompt."""
    return processed["input_ids"][0].tolist()


def check_pixels(subject: Subject) -> list[Check]:
    """What the encoder takes, as extraction makes it and with transformers' resizing, against the processor's own."""
    if not subject.processed:
        return []
    model = subject.model
    prepared = prepare_all(model, subject.request, subject.with_pairs)
    pairs = list(zip(prepared, subject.processed, strict=True))
    as_in_run = worst(input_error(model, item, item.images, own) for item, own in pairs)
    by_transformers = worst(input_error(model, item, resize_by_transformers(model, item), own) for item, own in pairs)
    default = model.family.vision.default_pixels
    return [
        Check("pixels, resized by transformers, and the processor's own", by_transformers, SAME_PIXELS),
        Check(f"pixels, resized as in a run ({default}), and the processor's own", as_in_run, LIMIT_OF_RESIZING),
    ]


def resize_by_transformers(model: LoadedModel, item: PreparedSample) -> list[ImageInputs]:
    """The encoder's inputs of a sample's images, made with `--pixels transformers`."""
    make = image_maker(model.family.vision, len(item.images))
    return [make(model.processor, decode_image(one), "transformers", model.config) for one in item.sample.images]


def input_error(
    model: LoadedModel, item: PreparedSample, images: Sequence[ImageInputs], theirs: Mapping[str, Any]
) -> float:
    """Largest relative error of the forward's image inputs; infinite if a shape or mask differs, or without pixels."""
    made = model.family.reference.forward_inputs(model.config, torch.tensor([item.prompt.token_ids]), images)
    errors = []
    for name, ours in made.items():
        if name not in theirs:
            continue
        own = torch.as_tensor(theirs[name])
        if own.shape != ours.shape or not (own.is_floating_point() or torch.equal(own.to(ours.dtype), ours)):
            return float("inf")
        if own.is_floating_point():
            errors.append(relative_error(ours.numpy(), own.float().numpy()))
    return worst(errors) if errors else float("inf")


def check_records(subject: Subject) -> list[Check]:
    """Numbers of tokens and indices in the records against the processor's token ids; nothing without one."""
    if not subject.processed:
        return []
    pairs = zip(subject.alone, subject.processed[: len(subject.alone)], strict=True)
    wrong = sum(not fits_prompt(subject.model, record, token_ids(own)) for record, own in pairs)
    return [count("records whose numbers of tokens and indices differ from the processor's prompt", wrong)]


def fits_prompt(model: LoadedModel, record: Record, token_ids: Sequence[int]) -> bool:
    """Whether a record's numbers of tokens and indices are those of the processor's token ids."""
    image_token_id = model.tokenizer.convert_tokens_to_ids(model.family.prompt.image_token)
    image = [index for index, token_id in enumerate(token_ids) if token_id == image_token_id]
    found = (record.prompt_tokens, record.image_tokens, record.vision_token_index, record.query_token_index)
    return found == (len(token_ids), len(image), image[-1], len(token_ids) - 1)


def check_images(subject: Subject) -> list[Check]:
    """How images are read: orientation, and the id that says which records have the same image."""
    image = decode_image(subject.samples[0].images[0])
    exif = Image.Exif()
    exif[ORIENTATION] = ROTATED
    stored = io.BytesIO()
    image.save(stored, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored.getvalue()))).convert("RGB")
    decoded = decode_image(stored.getvalue())
    return [
        count(
            "an image with an EXIF orientation, decoded, and Pillow's exif_transpose, difference",
            int((decoded.size, decoded.tobytes()) != (expected.size, expected.tobytes())),
        ),
        count(
            "records whose image_id is not the SHA-256 of size and pixels",
            sum(
                record.image_id != own_image_id(sample)
                for record, sample in zip(subject.alone, subject.samples, strict=True)
            ),
        ),
    ]


def own_image_id(sample: Sample) -> str:
    """SHA-256 of `{width}x{height}:` and the RGB bytes of a sample's one image."""
    image = decode_image(sample.images[0])
    return hashlib.sha256(f"{image.width}x{image.height}:".encode() + image.convert("RGB").tobytes()).hexdigest()
