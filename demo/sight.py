"""The last stage: projection and LoRA learn to answer from pictures; tower and decoder are frozen."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from decoder import load_decoder
from lessons import QUESTION_LENGTH, USER, Lesson, Words, easy_lessons, token_labels
from network import IMAGE_TOKENS, Network, add_lora, answer_loss, build, decode, project, project_tokens, shared_prefix
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from stage import BATCH, Descent, Scores, Stage, question_rows
from torch import Tensor, nn
from torch.nn import functional
from tower import compute_all_features

from midsight.demo.scenes import COLORS, SHAPES
from midsight.demo.seeing import HIDDEN_SIZE

ALIGN_RATE, ALIGN_TOKENS = 3e-3, 2048
RATE = 3e-3
KEPT, KEPT_LATE, LATE_FROM = 91, 182, 0.75
"""Number of a picture's 545 image tokens that one step uses, drawn anew each time; more in the last part of the stage.

Each gets the attention weight of several, so on average the decoder reads the same as from all tokens.
"""
BLIND_EVERY = 5
"""Every fifth step trains without seeing: the LoRA is off, and the commonest answer to the question is right."""


def train_sight(stage: Stage) -> None:
    """Trains LoRA, projection and separators on pictures; every few steps are blind.

    In a blind step the LoRA is off, each question gets another picture, and the commonest answer to the question counts
    as right.
    """
    words, rng, steps, effort = stage.words, stage.rng, stage.effort.sight_steps, stage.effort
    lessons = [*easy_lessons()[: effort.sight_easy], *stage.training_lessons()[-effort.sight_scenes :]]
    lessons, held_out = [lesson for lesson in lessons if lesson.shapes], stage.held_out_lessons()
    features, held_out_features = (
        compute_all_features(stage.folder, lessons),
        compute_all_features(stage.folder, held_out),
    )
    stage.log(pictures=len(lessons) + len(held_out))
    easy = [i for i, lesson in enumerate(lessons) if lesson.source[0] == "easy"]
    own = [i for i, lesson in enumerate(lessons) if lesson.source[0] != "easy"]
    network, mark = load_base(stage)
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
    scores, guesses = Scores(), stage.guesses()
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
            scores.add_all(kinds, right)
        if step % 50 == 49:
            stage.log(step=step + 1, loss=mean(losses[False]), blind_loss=mean(losses[True]), **scores.take())
            losses = {True: [], False: []}
        if (step + 1) % 500 == 0 or step + 1 == steps:
            for on in (True, False):
                switch_lora(network, on=on)
                held_out_shares = accuracy_by_kind(network, words, held_out, held_out_features, stage.seed)
                stage.log(step=step + 1, lora="on" if on else "off", held_out=held_out_shares)
    save_file({name: tensor.detach() for name, tensor in learned.items()}, stage.folder / "sight.safetensors")


def load_base(stage: Stage) -> tuple[Network, Tensor]:
    """The network with trained tower and decoder, and a new LoRA and projection; and the decoder's mark."""
    network = build(stage.ids, stage.seed)
    network.embed.img_processor.load_state_dict(load_file(stage.folder / "tower.safetensors"))
    mark = load_decoder(network, stage.folder / "doubt.safetensors")
    add_lora(network)
    return network, mark


def align(
    stage: Stage, network: Network, mark: Tensor, lessons: Sequence[Lesson], features: np.ndarray
) -> tuple[float, float]:
    """Trains the projection to give the marked words of what a token shows; returns the loss before and after."""
    generator, steps = torch.Generator().manual_seed(stage.seed), stage.effort.align_steps
    features_used, wanted = [], []
    for lesson, pooled in zip(lessons, features, strict=True):
        forms, colors = token_labels(lesson, lesson.image())
        shown, background = torch.nonzero(forms > 0).flatten(), torch.nonzero(forms == 0).flatten()
        some = torch.randperm(len(background), generator=generator)[: len(shown)]
        features_used += [pooled[shown.numpy()], pooled[background[some].numpy()]]
        for form, color in zip(forms[shown].tolist(), colors[shown].tolist(), strict=True):
            piece = stage.words.piece(network.table, SHAPES[form - 1], sorted(COLORS)[color - 1])
            wanted.append(mark + network.table.rows.detach()[piece].sum(dim=0))
        wanted += [mark] * len(some)
    inputs, targets = torch.from_numpy(np.concatenate(features_used)).float(), torch.stack(wanted)
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
    """The parameters of LoRA, projection and separators, by name."""
    return {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if ".lora_" in name or "img_projection" in name or "feature_extensor" in name
    }


def read_pictures(network: Network, features: Tensor, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
    """States [pictures, questions, length, width] of questions after the prefix of their picture.

    `kept` are the indices of the image tokens to use, ascending; every token keeps its position.
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
    """Share of right answers on held-out pictures, by kind."""
    scores, rng = Scores(), random.Random(seed)  # noqa: S311
    with torch.no_grad():
        for i in range(0, len(lessons), BATCH):
            inputs, targets, kinds = question_rows(words, network, lessons[i : i + BATCH], rng)
            states = read_pictures(network, torch.from_numpy(features[i : i + BATCH]).float(), inputs)
            _, right = answer_loss(network, states, targets.unflatten(1, (-1, QUESTION_LENGTH)))
            scores.add_all(kinds, right)
    return scores.take()


def switch_lora(network: Network, *, on: bool) -> None:
    """Switches the LoRA on or off."""
    for module in network.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(on)


def mean(numbers: Sequence[float]) -> float:
    """The mean, rounded."""
    return round(float(np.mean(numbers)), 4)
