"""The last stage: projection and LoRA learn to answer from pictures, tower and decoder frozen."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from decoder import load_decoder
from lessons import QUESTION_LENGTH, USER, Lesson, Words, easy_lessons, token_labels
from network import IMAGE_TOKENS, Network, add_lora, answer_loss, build, decode, project, project_tokens, shared_prefix
from safetensors.torch import load_file, save_file
from stage import BATCH, Descent, Marks, Stage, question_rows
from torch import Tensor, nn
from torch.nn import functional
from tower import look_at_all

from midsight.demo.scenes import COLORS, SHAPES
from midsight.demo.seeing import HIDDEN_SIZE

ALIGN_RATE, ALIGN_TOKENS = 3e-3, 2048
RATE = 3e-3
KEPT, KEPT_LATE, LATE_FROM = 91, 182, 0.75
"""Of a picture's 545 image tokens a step sees so many, drawn anew, and more of them in the last part of the stage.

Each stands for several in attention, so what is read from them is on average what is read from all.
"""
BLIND_EVERY = 5
"""One step in so many keeps the base blind: LoRA off, and the likeliest answer to the words is right."""


def train_sight(stage: Stage) -> None:
    """LoRA, projection and separators, on pictures; every few steps the base is kept blind.

    A blind step has the LoRA off, each question before another's picture, and the commonest answer to its words as the
    right one.
    """
    words, rng, steps, effort = stage.words, stage.rng, stage.effort.sight_steps, stage.effort
    lessons = [*easy_lessons()[: effort.sight_easy], *stage.training_lessons()[-effort.sight_scenes :]]
    lessons, held_out = [lesson for lesson in lessons if lesson.shapes], stage.held_out_lessons()
    features, held_out_features = look_at_all(stage.folder, lessons), look_at_all(stage.folder, held_out)
    stage.log(looked=len(lessons) + len(held_out))
    easy = [i for i, lesson in enumerate(lessons) if lesson.source[0] == "easy"]
    own = [i for i, lesson in enumerate(lessons) if lesson.source[0] != "easy"]
    network, mark = finished_base(stage)
    for parameter in [*network.model.parameters(), *network.table.parameters()]:
        parameter.requires_grad_(False)
    learned = learned_by_sight(network)
    for parameter in learned.values():
        parameter.requires_grad_(True)
    aligned = [*easy[: effort.aligned // 8], *own[: effort.aligned - effort.aligned // 8]]
    before, after = align(stage, network, mark, [lessons[i] for i in aligned], features[aligned])
    stage.log(align_loss_before=before, align_loss=after)
    descent = Descent(list(learned.values()), RATE, steps)
    generator = torch.Generator().manual_seed(stage.seed)
    losses: dict[bool, list[float]] = {True: [], False: []}
    marks, guesses = Marks(), stage.guesses()
    for step in range(steps):
        numbers = [*rng.sample(easy, BATCH // 8), *rng.sample(own, BATCH - BATCH // 8)]
        blind = step % BLIND_EVERY == BLIND_EVERY - 1
        chosen = [lessons[i] for i in numbers]
        inputs, targets, kinds = question_rows(words, network, chosen, rng, [guesses] * BATCH if blind else None)
        switch_lora(network, on=not blind)
        pictures = torch.from_numpy(features[numbers]).float()
        if blind:
            pictures = pictures.roll(1 + rng.randrange(BATCH - 1), dims=0)
        number = KEPT if step < LATE_FROM * steps else KEPT_LATE
        kept = torch.randperm(IMAGE_TOKENS, generator=generator)[:number].sort().values
        loss, right = answer_loss(
            network,
            read_pictures(network, pictures, inputs, kept),
            targets.unflatten(1, (-1, QUESTION_LENGTH)),
        )
        descent.step(loss)
        losses[blind].append(loss.item())
        if not blind:
            marks.add_all(kinds, right)
        if step % 50 == 49:
            stage.log(step=step + 1, loss=mean(losses[False]), blind_loss=mean(losses[True]), **marks.take())
            losses = {True: [], False: []}
        if (step + 1) % 500 == 0 or step + 1 == steps:
            for on in (True, False):
                switch_lora(network, on=on)
                held_out_shares = accuracy_by_kind(network, words, held_out, held_out_features, stage.seed)
                stage.log(step=step + 1, lora="on" if on else "off", held_out=held_out_shares)
    save_file({name: tensor.detach() for name, tensor in learned.items()}, stage.folder / "sight.safetensors")


def finished_base(stage: Stage) -> tuple[Network, Tensor]:
    """Tower and decoder as their stages left them, with a fresh LoRA and projection, and the decoder's mark."""
    network = build(stage.ids, stage.seed)
    network.embed.img_processor.load_state_dict(load_file(stage.folder / "tower.safetensors"))
    mark = load_decoder(network, stage.folder / "doubt.safetensors")
    add_lora(network)
    return network, mark


def align(
    stage: Stage, network: Network, mark: Tensor, lessons: Sequence[Lesson], features: np.ndarray
) -> tuple[float, float]:
    """The projection learns to say the words of what a token shows, with the mark; the loss before and after."""
    generator, steps = torch.Generator().manual_seed(stage.seed), stage.effort.align_steps
    seen, said = [], []
    for lesson, pooled in zip(lessons, features, strict=True):
        forms, colors = token_labels(lesson, lesson.image())
        shown, background = torch.nonzero(forms > 0).flatten(), torch.nonzero(forms == 0).flatten()
        some = torch.randperm(len(background), generator=generator)[: len(shown)]
        seen += [pooled[shown.numpy()], pooled[background[some].numpy()]]
        for form, color in zip(forms[shown].tolist(), colors[shown].tolist(), strict=True):
            piece = stage.words.piece(network.table, SHAPES[form - 1], sorted(COLORS)[color - 1])
            said.append(mark + network.table.rows.detach()[piece].sum(dim=0))
        said += [mark] * len(some)
    inputs, targets = torch.from_numpy(np.concatenate(seen)).float(), torch.stack(said)
    layers = (network.embed.img_projection_up, network.embed.img_projection_down)
    descent = Descent([parameter for layer in layers for parameter in layer.parameters()], ALIGN_RATE, steps)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(inputs), (ALIGN_TOKENS,), generator=generator)
        loss = functional.mse_loss(project_tokens(network, inputs[rows]), targets[rows])
        descent.step(loss)
        losses.append(loss.item())
    return round(losses[0], 4), round(losses[-1], 4)


def learned_by_sight(network: Network) -> dict[str, nn.Parameter]:
    """LoRA, projection and separators by name."""
    return {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if ".lora_" in name or "img_projection" in name or "feature_extensor" in name
    }


def read_pictures(network: Network, features: Tensor, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
    """States [pictures, questions, length, width] of questions behind the prefix of their picture.

    `kept` numbers the image tokens that are there, in ascending order; every one keeps its place.
    """
    user = network.table.rows[network.table.index[USER]].expand(len(features), 1, HIDDEN_SIZE)
    prefix = torch.cat([user, project(network, features)], dim=1)
    positions, allowed = shared_prefix(prefix.shape[1], inputs.shape[1] // QUESTION_LENGTH, QUESTION_LENGTH)
    embeddings = torch.cat([prefix, network.table(inputs)], dim=1)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    if kept is not None:
        mask[..., 1 : 1 + IMAGE_TOKENS] += math.log(IMAGE_TOKENS / len(kept))
        questions = torch.arange(prefix.shape[1], embeddings.shape[1])
        kept = torch.cat([torch.zeros(1, dtype=torch.long), 1 + kept, questions])
        embeddings, positions, mask = embeddings[:, kept], positions[:, kept], mask[..., kept, :][..., kept]
    states = decode(network, embeddings, positions, mask)
    return states[:, -inputs.shape[1] :].unflatten(1, (-1, QUESTION_LENGTH))


def accuracy_by_kind(
    network: Network, words: Words, lessons: Sequence[Lesson], features: np.ndarray, seed: int
) -> dict[str, float]:
    """Share of right answers on held-out pictures."""
    marks, rng = Marks(), random.Random(seed)  # noqa: S311
    with torch.no_grad():
        for i in range(0, len(lessons), BATCH):
            inputs, targets, kinds = question_rows(words, network, lessons[i : i + BATCH], rng)
            states = read_pictures(network, torch.from_numpy(features[i : i + BATCH]).float(), inputs)
            _, right = answer_loss(network, states, targets.unflatten(1, (-1, QUESTION_LENGTH)))
            marks.add_all(kinds, right)
    return marks.take()


def switch_lora(network: Network, *, on: bool) -> None:
    """The LoRA in or out."""
    if on:
        network.model.enable_adapters()
    else:
        network.model.disable_adapters()


def mean(numbers: Sequence[float]) -> float:
    """Rounded."""
    return round(float(np.mean(numbers)), 4)
