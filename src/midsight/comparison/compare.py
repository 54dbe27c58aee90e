"""Models side by side, by their configs."""

from __future__ import annotations

from midsight.comparison.bounded_row import describe_bounded
from midsight.comparison.published import PUBLISHED
from midsight.comparison.rows import ModelRow, describe_model, find_published


def compare(sources: list[str]) -> list[ModelRow]:
    """Compares models by their configs.

    Args:
        sources: Folders or hub ids; if empty, the published model of every family. These need no download; of other
            models on the hub, only config and tokenizer files are downloaded.

    Returns:
        A row for each model.

    Raises:
        MidsightError: A config is missing or damaged, or its family is unknown.
    """
    names = sources or [model.hub_id for model in PUBLISHED]
    return [describe_model(name) if find_published(name) else describe_bounded(name) for name in names]
