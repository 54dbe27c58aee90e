"""The vision features against transformers' own tower, and the patches that are declared useful."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from midsight.check.check import Check
from midsight.check.full_forward import FullForward, relative_error, worst
from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.families.inputs import ImageInputs
from midsight.records import VISION_ONLY, Record


@torch.inference_mode()
def check_vision_features(
    model: LoadedModel,
    records: Sequence[Record],
    prepared: Sequence[PreparedSample],
    forwards: Sequence[FullForward],
    limit: float,
) -> Check:
    """The mean of the vision features against that of the tower in the full forward."""
    errors = []
    for record, item, forward in zip(records, prepared, forwards, strict=True):
        useful = [
            features[model.family.vision.useful_patches(image)]
            for features, image in zip(forward.tower_features, item.images, strict=True)
        ]
        errors.append(relative_error(record.vectors[VISION_ONLY], torch.cat(useful).double().mean(dim=0).numpy()))
    return Check("vision features and transformers' tower", worst(errors), limit)


def check_useful_patches(model: LoadedModel, prepared: Sequence[PreparedSample]) -> list[Check]:
    """The patches that reach the decoder, found by gradients, against those declared useful.

    Pooling may join the last odd row or column of the image with padding. So a few more patches may reach the decoder
    than are useful, but none from crops that the image fills.
    """
    unseen = seen = extra = left_out = 0
    for image in (image for item in prepared for image in item.images):
        useful = model.family.vision.useful_patches(image)
        reaches = patches_seen(model, image, useful)
        unseen += int((useful & ~reaches).sum())
        seen += int(reaches.sum())
        not_useful = reaches & ~useful
        extra += int(not_useful.sum())
        filled = image.patch_mask.flatten(1).all(dim=1)
        left_out += int(not_useful.view(len(filled), -1)[filled].sum())
    return [
        Check("useful patches that the decoder never sees", unseen, 0),
        Check("patches of filled crops that it sees and are not useful", left_out, 0),
        Check("share of the patches it sees that are not useful", extra / seen, 1 / 16),
    ]


def patches_seen(model: LoadedModel, image: ImageInputs, useful: Tensor) -> Tensor:
    """The patches whose features change the embeddings that are attended to: bool, of the shape of `useful`."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn((*useful.shape, model.family.vision.width(model.config)), generator=generator)
    features = random.to(model.device, model.dtype).requires_grad_()
    embeddings = model.family.vision.image_embeddings(model.hf_model, features, image)[: image.attended]
    (gradient,) = torch.autograd.grad(embeddings.float().pow(2).sum(), features)
    return gradient.abs().sum(dim=-1).cpu() > 0
