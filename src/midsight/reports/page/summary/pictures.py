"""Small pictures of a run's images as data URIs, and what is to be said about those that are missing."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from midsight.errors import counted, spell_parts
from midsight.flags import as_flag
from midsight.reports.thumbnails import ImageOfRun, make_thumbnails
from midsight.store.reader import Run

MOST_PICTURES = 500


def small_pictures(
    run: Run, images: Mapping[str, ImageOfRun], folder: str | Path | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Small pictures of the run's images.

    Args:
        run: The run.
        images: An image for each image id, the most important first.
        folder: Where image paths start from; by default what run.json says.

    Returns:
        Image id -> picture as a data URI, of at most MOST_PICTURES images; and sentences about missing ones.
    """
    wanted = dict([*images.items()][:MOST_PICTURES])
    made = make_thumbnails(run, wanted, folder)
    found = {image: _data_uri(made.webp[image]) for image in wanted if image in made.webp}
    notes = []
    if len(images) > len(wanted):
        notes.append(f"Pictures are shown of {len(wanted):,} of {counted(len(images), 'image')}.")
    if len(found) < len(wanted):
        missing = counted(len(wanted) - len(found), "picture is", "pictures are")
        why = f": {spell_parts(made.problem, as_flag)}" if made.problem else "."
        notes.append(f"{missing} missing{why}")
    return found, tuple(notes)


def _data_uri(webp: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(webp).decode('ascii')}"
