"""The vision features against transformers' own tower, and the patches that are declared useful."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midsight.check.check import Check, count
from midsight.check.full_forward import FullForward, relative_error, worst
from midsight.check.subject import Subject
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.families.inputs import ImageInputs
from midsight.records import VISION_ONLY, Record


def check_vision_features(subject: Subject) -> list[Check]:
    """The mean of the vision features against that of the tower in the full forward."""
    error = vision_error(subject.model, subject.alone, subject.prepared, subject.forwards)
    return [Check("vision features and transformers' tower", error, subject.limit)]


@torch.inference_mode()
def vision_error(
    model: LoadedModel,
    records: Sequence[Record],
    prepared: Sequence[PreparedSample],
    forwards: Sequence[FullForward],
) -> float:
    """Largest relative error of the vision features against the tower's in full forwards of the same samples."""
    errors = []
    for record, item, forward in zip(records, prepared, forwards, strict=True):
        useful = [
            features[model.family.vision.useful_patches(image)]
            for features, image in zip(forward.tower_features, item.images, strict=True)
        ]
        errors.append(relative_error(record.vectors[VISION_ONLY], torch.cat(useful).double().mean(dim=0).numpy()))
    return worst(errors)


def check_useful_patches(subject: Subject) -> list[Check]:
    """The patches that reach the decoder, found by gradients, against those declared useful.

    Pooling may join the last odd row or column of the image with padding. So a few more patches may reach the decoder
    than are useful, but none from crops that the image fills.
    """
    model = subject.model
    unseen = seen = extra = left_out = 0
    for image in (image for item in subject.prepared for image in item.images):
        useful = model.family.vision.useful_patches(image)
        reaches = patches_seen(model, image, useful)
        unseen += int((useful & ~reaches).sum())
        seen += int(reaches.sum())
        not_useful = reaches & ~useful
        extra += int(not_useful.sum())
        filled = image.patch_mask.flatten(1).all(dim=1)
        left_out += int(not_useful.view(len(filled), -1)[filled].sum())
    return [
        count("patches in the mean that never reach the decoder", unseen),
        count("patches of filled crops that reach the decoder and are not in the mean", left_out),
        Check(
            "share of the patches that reach the decoder and are not in the mean", extra / seen, 1 / 16, unit="share"
        ),
    ]


def patches_seen(model: LoadedModel, image: ImageInputs, useful: Tensor) -> Tensor:
    """The patches whose features change the embeddings that are attended to: bool, of the shape of `useful`."""
    generator = torch.Generator().manual_seed(0)
    vision = model.family.vision
    width = (vision.encoded_width or vision.width)(model.config)
    random = torch.randn((*useful.shape, width), generator=generator)
    features = random.to(model.device, model.dtype).requires_grad_()
    embeddings = vision.image_embeddings(model.hf_model, features, image)[: image.attended]
    (gradient,) = torch.autograd.grad(embeddings.float().pow(2).sum(), features)
    return gradient.abs().sum(dim=-1).cpu() > 0
