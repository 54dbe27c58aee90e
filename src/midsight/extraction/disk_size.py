"""The approximate size of samples on disk, before they are extracted."""

from __future__ import annotations

import torch

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.request import ResolvedRequest
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.store.schema import StoreDtype

COMPRESSED_SHARE = {
    ("float32", True): 0.9,
    ("float32", False): 0.36,
    ("float16", True): 0.93,
    ("float16", False): 0.77,
}
"""Bytes on disk per byte of vectors, by store dtype and whether the model computes in float32."""
ROW_BYTES = 400
"""Approximate size of a row's text and numbers, without its vectors."""
FOLDER_BYTES = 20_000
"""Approximate size of run.json, a commit record and a part's schema."""


def estimate_bytes(
    model: LoadedModel, request: ResolvedRequest, store_dtype: StoreDtype, *, samples: int, images: int
) -> int:
    """Approximate size of the samples on disk: compressed vectors, once per image if they repeat with it, and text.

    scripts/size_figures.py measures the share that compression leaves.
    """
    repeats = model.family.decoder.shares_image_prefix
    by_image = {VISION_ONLY, PROCESSOR_POOLED_PIXELS} if repeats else set()
    by_image |= {str(tap) for tap in request.taps if repeats and tap.position != "query_token"}
    widths = sum(width * (images if name in by_image else samples) for name, width in request.vectors.items())
    itemsize = 4 if store_dtype == "float32" else 2
    share = COMPRESSED_SHARE[store_dtype, model.dtype == torch.float32]
    return round(widths * itemsize * share) + samples * ROW_BYTES + FOLDER_BYTES
