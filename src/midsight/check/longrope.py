"""The longrope threshold, proved with a threshold that is so small that the samples lie on both sides of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from midsight.check.check import Check, count
from midsight.check.subject import Subject, extract_together
from midsight.check.together import compare_group, make_group
from midsight.checkpoints.loading import LoadedModel

FIELD = "original_max_position_embeddings"


def check_longrope(subject: Subject) -> list[Check]:
    """Prompts of both regimes in one batch; the shortest has as many tokens as the threshold, so its answer crosses.

    Nothing is measured for a decoder without longrope.
    """
    model = subject.model
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return []
    shortest = min(len(item.prompt.token_ids) for item in subject.prepared)
    what = "prompts on both sides of a longrope threshold set low"
    with threshold_of(model, shortest):
        found = model.longrope_threshold
        request = replace(subject.request, longrope_threshold=found)
        group = make_group(model, request, subject.samples)
        records = extract_together(model, request, group.prepared, "left")
        compared = compare_group(what, subject, group, [records])
    return [count("longrope threshold found and set, difference", abs((found or 0) - shortest)), *compared]


@contextmanager
def threshold_of(model: LoadedModel, tokens: int) -> Iterator[None]:
    """The model with another longrope threshold inside the block."""
    config = model.config.get_text_config()
    published = config.rope_parameters
    config.rope_parameters = {**published, FIELD: tokens}
    try:
        yield
    finally:
        config.rope_parameters = published
