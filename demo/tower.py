"""The first stage: the vision tower learns to recognise form and colour in each image token."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lessons import CROP_PX, Lesson, code_digest, pixels_of, token_labels, window_corner
from network import build, pooled_features, window_features
from safetensors.torch import load_file, save_file
from stage import BATCH, Descent, Stage, as_bfloat16
from torch import Tensor, nn
from torch.nn import functional

from midsight.demo.scenes import COLORS, SHAPES
from midsight.demo.seeing import HIDDEN_SIZE

RATE = 2e-3
WINDOWS, WHOLE, WHOLE_WEIGHT = 24, 2, 0.5
PROCESSES = 2


def train_tower(stage: Stage) -> None:
    """Trains the tower with a linear classifier of its image tokens; only the tower is kept.

    Each step uses windows around single shapes, which are cheap, and a few whole pictures.
    """
    network, rng, steps = build(stage.ids, stage.seed), stage.rng, stage.effort.tower_steps
    heads = nn.ModuleList([nn.Linear(HIDDEN_SIZE, 1 + len(names)) for names in (SHAPES, COLORS)])
    lessons = [lesson for lesson in stage.training_lessons() if lesson.shapes]
    descent = Descent([*network.embed.img_processor.parameters(), *heads.parameters()], RATE, steps)
    easy = [lesson for lesson in lessons if lesson.source[0] == "easy"]
    own = [lesson for lesson in lessons if lesson.source[0] != "easy"]
    right: dict[str, list[list[float]]] = {"windows": [], "whole": []}
    for step in range(steps):
        windows = rng.sample(own, WINDOWS)
        corners = [window_corner(lesson, rng) for lesson in windows]
        cut = [cut_window(lesson, *corner) for lesson, corner in zip(windows, corners, strict=True)]
        whole = [rng.choice(easy), *rng.sample(own, WHOLE - 1)]
        images = [lesson.image() for lesson in whole]
        pixels, forms, colors = map(torch.stack, zip(*cut, strict=True))
        features = window_features(network, pixels, torch.tensor(corners))
        loss, shares = label_loss(heads, features, (forms, colors))
        right["windows"].append(shares)
        labels = zip(*(token_labels(lesson, image) for lesson, image in zip(whole, images, strict=True)), strict=True)
        features = pooled_features(network, torch.stack([pixels_of(image) for image in images]))
        whole_loss, shares = label_loss(heads, features, tuple(map(torch.stack, labels)))
        right["whole"].append(shares)
        descent.step(loss + WHOLE_WEIGHT * whole_loss)
        if step % 20 == 19 or step + 1 == steps:
            shares = {name: np.nanmean(rows[-20:], axis=0).round(3).tolist() for name, rows in right.items()}
            stage.log(step=step + 1, loss=round(loss.item(), 3), whole_loss=round(whole_loss.item(), 3), right=shares)
    as_bfloat16(network.embed.img_processor)
    save_file(network.embed.img_processor.state_dict(), stage.folder / "tower.safetensors")


def cut_window(lesson: Lesson, row: int, column: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [3, 224, 224] of a window of 16 x 16 patches, and form and colour [64] of its image tokens."""
    image = lesson.image()
    side, top, left = CROP_PX // 2, row * CROP_PX // 32, column * CROP_PX // 32
    forms, colors = (
        labels.view(16, 16)[row // 2 : row // 2 + 8, column // 2 : column // 2 + 8].flatten()
        for labels in token_labels(lesson, image)
    )
    return pixels_of(image, (left, top, left + side, top + side)), forms, colors


def label_loss(heads: nn.ModuleList, features: Tensor, labels: tuple[Tensor, ...]) -> tuple[Tensor, list[float]]:
    """Loss of form and colour, with equal weight for shapes and background, and the four shares of right labels."""
    loss, shares = torch.zeros(()), []
    for head, target in zip(heads, labels, strict=True):
        logits = head(features)
        for part in (target > 0, target == 0):
            if part.any():
                loss = loss + functional.cross_entropy(logits[part], target[part])
            shares.append(float((logits[part].argmax(-1) == target[part]).float().mean()))
    return loss, shares


def compute_features(tower: Path, sources: Sequence[tuple[str, int]]) -> np.ndarray:
    """Pooled features of pictures from the trained tower, float16 [pictures, 256, width], on one thread."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    network = build([0], 0)
    network.embed.img_processor.load_state_dict(load_file(tower))
    features = np.empty((len(sources), 256, HIDDEN_SIZE), dtype=np.float16)
    with torch.inference_mode():
        for i in range(0, len(sources), BATCH):
            images = [Lesson(source, (), ()).image() for source in sources[i : i + BATCH]]
            pixels = torch.stack([pixels_of(image) for image in images])
            features[i : i + BATCH] = pooled_features(network, pixels).numpy()
    return features


def compute_all_features(folder: Path, lessons: Sequence[Lesson]) -> np.ndarray:
    """Features of all pictures; read from a file if this tower computed them before."""
    tower = folder / "tower.safetensors"
    sources = [lesson.source for lesson in lessons]
    name = hashlib.sha256(tower.read_bytes() + json.dumps(sources).encode() + code_digest()).hexdigest()[:16]
    path = folder / f"features-{name}.npy"
    if not path.exists():
        chunks = [sources[i : i + 20 * BATCH] for i in range(0, len(sources), 20 * BATCH)]
        np.save(path, np.concatenate(compute_chunks(tower, chunks)))
    return np.load(path)


def compute_chunks(tower: Path, chunks: Sequence[Sequence[tuple[str, int]]]) -> list[np.ndarray]:
    """Features of each chunk of pictures; a single chunk is not worth the start of processes."""
    if len(chunks) == 1:
        with torch.random.fork_rng():
            return [compute_features(tower, chunks[0])]
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(compute_features, [tower] * len(chunks), chunks))
