"""A model's config and what follows from it, weights neither read nor fetched."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

from midsight.errors import MidsightError, first_line
from midsight.models.adapter import Adapter
from midsight.models.catalogue import LAYOUTS, find_adapter, open_checkpoint, read_model_type
from midsight.models.checkpoint import part_of
from midsight.models.hub import TEXTS, fetch, is_folder, is_hub_id
from midsight.models.native import read_architectures


def read_config(source: str) -> tuple[Adapter, Any]:
    """Adapter and transformers' config of a folder or hub id, of which no weights are fetched."""
    in_folder = is_folder(source)
    if not in_folder and not is_hub_id(source):
        raise MidsightError(f"{source} is no folder, and no hub id like owner/name; give one of them.")
    folder = Path(source) if in_folder else fetch(source, None, allow=TEXTS, ignore="*/*")
    if read_model_type(folder) in LAYOUTS:
        if not in_folder:
            raise MidsightError(
                f"{source} has a layout whose config.json leaves out sizes that its tensors tell; give a folder "
                "with its weights."
            )
        checkpoint = open_checkpoint(folder)
        return checkpoint.adapter, checkpoint.config
    adapter = find_adapter(read_architectures(folder), source)
    try:
        return adapter, transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises whatever a value leads it to
        raise MidsightError(
            f"{folder / 'config.json'} is no config of {adapter.family}: {first_line(error)}; download it again."
        ) from error


def count_by_part(adapter: Adapter, config: Any) -> dict[str, int]:
    """Parameters of the class with this config, by part; nothing is allocated."""
    try:
        with torch.device("meta"):
            model = getattr(transformers, adapter.architecture)(config)
    except Exception as error:  # as above
        raise MidsightError(
            f"The sizes in config.json make no {adapter.family}: {first_line(error)}; download it again."
        ) from error
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[part_of(name, adapter)] += parameter.numel()
    return dict(counts)
