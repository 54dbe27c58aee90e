"""HDF5 parts as facts about the HALP scripts have them: a writer and a reader that share no code with midsight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

VISION_ONLY = "vision_only_representation"
VISION_TOKEN, QUERY_TOKEN = "vision_token_representation", "query_token_representation"
TEXTS = ("image_id", "question", "ground_truth_answer", "answer")
WIDTH = 6


@dataclass
class Stored:
    """One sample of a part."""

    texts: dict[str, str] = field(default_factory=dict)
    vision_only: np.ndarray | None = None
    layers: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)


def make_sample(index: int, layers: Iterable[int], *, vision_width: int = 5, **changes: Any) -> Stored:
    """The sample of row `index`, always the same; two questions share an image."""
    rng = np.random.default_rng(index)
    image = np.random.default_rng(1000 + index // 2)
    made = Stored(
        texts={
            "image_id": f"{index // 2}.jpg",
            "question": f"Is there a café in row {index}?",
            "ground_truth_answer": ("yes", "no")[index % 2],
            "answer": ("Yes, a café.", "No.")[index % 3 % 2],
        },
        vision_only=image.standard_normal(vision_width).astype(np.float32),
        layers={
            VISION_TOKEN: {k: image.standard_normal(WIDTH).astype(np.float32) for k in layers},
            QUERY_TOKEN: {k: rng.standard_normal(WIDTH).astype(np.float32) for k in layers},
        },
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def write_part(
    path: Path, samples: Mapping[str, Stored], attributes: Mapping[str, Any] | None = None, *, tag: str = "utf-8"
) -> Path:
    """A part as the scripts write it; `tag` is how its texts are marked, whatever they hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, value in (attributes or {}).items():
            file.attrs[name] = value
        for sample_id, sample in samples.items():
            group = file.create_group(sample_id)
            for name, text in sample.texts.items():
                group.create_dataset(name, data=text.encode(), dtype=h5py.string_dtype(tag))
            if sample.vision_only is not None:
                group.create_dataset(VISION_ONLY, data=sample.vision_only, compression="gzip")
            for position, vectors in sample.layers.items():
                inner = group.create_group(position)
                for layer, vector in vectors.items():
                    inner.create_dataset(f"layer_{layer}", data=vector, compression="gzip")
    return path


def attributes_of(model_type: str | None, count: int, **more: Any) -> dict[str, Any]:
    """The attributes of a part."""
    given = {"model_name": "published/model", "device": "cuda:0", "dtype": "torch.bfloat16", "num_samples": count}
    kind = {} if model_type is None else {"model_type": model_type}
    return {**given, "created_at": "2025-10-01T00:00:00", **kind, **more}


def read_parts(folder: Path) -> dict[str, Stored]:
    """Every sample of a folder, as the probe scripts find them: `*.h5` by name, groups by id."""
    found: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            assert file.attrs["num_samples"] == len(file)
            for sample_id, group in file.items():
                found[sample_id] = _read(group)
    return found


def _read(group: Any) -> Stored:
    stored = Stored(texts={name: group[name][()].decode("utf-8") for name in TEXTS if name in group})
    if VISION_ONLY in group:
        stored.vision_only = _vector(group[VISION_ONLY])
    for position in (VISION_TOKEN, QUERY_TOKEN):
        if position in group:
            stored.layers[position] = {
                int(name.removeprefix("layer_")): _vector(dataset) for name, dataset in group[position].items()
            }
    return stored


def _vector(dataset: Any) -> np.ndarray:
    """float32 [width], compressed with gzip."""
    assert (dataset.dtype, dataset.ndim, dataset.compression) == (np.float32, 1, "gzip")
    return dataset[:]
