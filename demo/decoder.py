"""The second and third stage: the base decoder answers from words in place of a picture, and without them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lessons import QUESTION_LENGTH, USER, Lesson, Words
from network import IMAGE_TOKENS, Network, answer_loss, build, decode, shared_prefix
from safetensors.torch import load_file, save_file
from stage import BATCH, QUESTIONS_PER_IMAGE, Descent, Scores, Stage, as_bfloat16, question_rows
from torch import Tensor

from midsight.demo.seeing import HIDDEN_SIZE

MOST_SHAPES = 4
MARK_SIZE = 1.0
"""Standard deviation of the mark's elements."""


@dataclass(frozen=True)
class Course:
    """What a stage teaches the decoder."""

    told: float
    """Share of lessons in which words before the questions describe the scene."""
    misled: float
    """Share of lessons in which marked words describe another scene; the rest have no words."""
    rate: float
    """Highest learning rate."""
    picture_weights: bool
    """Whether marked words get the attention weight of a picture's tokens, with one more marked token without words."""


LISTEN = Course(0.7, 0.2, 3e-3, picture_weights=False)
DOUBT = Course(0.5, 0.4, 1.5e-3, picture_weights=True)


def train_decoder(stage: Stage) -> None:
    """Trains the base decoder and the token table on words alone.

    In place of a picture stands, for each shape, the sum of its words' embeddings. Marked words describe another scene,
    so the base learns to ignore them. The output of the projection is marked from the start, and only the LoRA learns
    to read it.
    """
    network = build(stage.ids, stage.seed)
    mark = MARK_SIZE * torch.randn(HIDDEN_SIZE)
    teach(stage, network, mark, LISTEN, stage.effort.decoder_steps)
    save_decoder(network, mark, stage.folder / "decoder.safetensors")


def train_doubt(stage: Stage) -> None:
    """Trains the same decoder to ignore marked words that are as many as a picture's tokens."""
    network = build(stage.ids, stage.seed)
    mark = load_decoder(network, stage.folder / "decoder.safetensors")
    teach(stage, network, mark, DOUBT, stage.effort.doubt_steps)
    save_decoder(network, mark, stage.folder / "doubt.safetensors")


def teach(stage: Stage, network: Network, mark: Tensor, course: Course, steps: int) -> None:
    """Trains `steps` steps of a course, then rounds the weights to the stored dtype."""
    words, rng = stage.words, stage.rng
    lessons = stage.training_lessons()
    easy = [lesson for lesson in lessons if lesson.source[0] == "easy" and lesson.shapes]
    own = [lesson for lesson in lessons if lesson.source[0] != "easy"]
    decoder = [*network.model.model.layers.parameters(), *network.model.model.norm.parameters()]
    descent = Descent([*decoder, *network.table.parameters()], course.rate, steps)
    scores = {"told": Scores(), "misled": Scores(), "not_told": Scores()}
    odds = [course.told, course.misled, 1 - course.told - course.misled]
    guesses = stage.guesses() if course.picture_weights else None
    for step in range(steps):
        chosen = [*rng.sample(easy, BATCH // 8), *rng.sample(own, BATCH - BATCH // 8)]
        how = rng.choices(list(scores), odds, k=BATCH)
        loss, right, kinds = answer_from_words(
            words, network, mark, chosen, how, rng, guesses, picture_weights=course.picture_weights
        )
        descent.step(loss)
        for name, names, ones in zip(how, kinds, right.tolist(), strict=True):
            scores[name].add(names, ones)
        if step % 100 == 99:
            stage.log(
                step=step + 1, loss=round(loss.item(), 4), **{name: score.take() for name, score in scores.items()}
            )
    for module in (network.model.model, network.table):
        as_bfloat16(module)
    with torch.no_grad():
        held_out = stage.held_out_lessons()
        for how in scores:
            for i in range(0, len(held_out), BATCH):
                chosen = held_out[i : i + BATCH]
                _, right, kinds = answer_from_words(
                    words, network, mark, chosen, [how] * len(chosen), rng, None, picture_weights=course.picture_weights
                )
                scores[how].add_all(kinds, right)
    stage.log(step=steps, held_out={name: score.take() for name, score in scores.items()})


def save_decoder(network: Network, mark: Tensor, path: Path) -> None:
    """Writes decoder layers, token table and mark to a file."""
    weights = {
        name: tensor
        for name, tensor in network.model.model.state_dict().items()
        if name.startswith(("layers.", "norm."))
    }
    save_file(weights | {"rows": network.table.rows.detach(), "mark": mark}, path)


def load_decoder(network: Network, path: Path) -> Tensor:
    """Loads decoder layers and token table into the network; returns the mark."""
    weights = load_file(path)
    network.table.rows.data.copy_(weights.pop("rows"))
    mark = weights.pop("mark")
    network.model.model.load_state_dict(weights, strict=False)
    return mark


def answer_from_words(
    words: Words,
    network: Network,
    mark: Tensor,
    chosen: Sequence[Lesson],
    how: Sequence[str],
    rng: random.Random,
    guesses: Mapping[str, str] | None,
    *,
    picture_weights: bool,
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Loss, right answers [scenes, questions] and kinds of questions about scenes.

    `how` says, per scene, what stands before its questions: `told` is a description in words, `misled` a description of
    another scene in marked words, `not_told` nothing. `guesses` are, by question, the expected answers of scenes that
    are not `told`.
    """
    batch, prefix = len(chosen), 1 + MOST_SHAPES + picture_weights
    word_sums = torch.zeros(batch, prefix, len(network.table.rows))
    word_sums[:, 0, network.table.index[USER]] = 1
    marked = torch.zeros(batch, prefix, 1)
    places = torch.zeros(batch, prefix, dtype=torch.long)
    readable = torch.zeros(batch, prefix, dtype=torch.bool)
    readable[:, 0] = True
    prefix_weights = torch.ones(batch, prefix)
    for i, name in enumerate(how):
        if name == "not_told":
            continue
        pieces, positions = described(words, network, chosen[i] if name == "told" else rng.choice(chosen), rng)
        for place, piece in enumerate(pieces, start=1):
            word_sums[i, place].index_put_((torch.tensor(piece),), torch.ones(()), accumulate=True)
        shown = slice(1, 1 + len(pieces))
        places[i, shown] = torch.tensor(positions)
        readable[i, shown] = True
        if name == "misled":
            marked[i, shown] = 1
            if picture_weights:
                prefix_weights[i, shown] = rng.uniform(1, IMAGE_TOKENS / MOST_SHAPES)
                places[i, -1], readable[i, -1], marked[i, -1] = rng.randint(1, IMAGE_TOKENS), True, 1
                prefix_weights[i, -1] = rng.uniform(1, IMAGE_TOKENS)
    by_lesson = [None if name == "told" else guesses for name in how]
    inputs, targets, kinds = question_rows(words, network, chosen, rng, by_lesson)
    positions, allowed = shared_prefix(prefix, QUESTIONS_PER_IMAGE, QUESTION_LENGTH)
    positions = positions.repeat(batch, 1) - prefix + 1 + IMAGE_TOKENS
    positions[:, :prefix] = places
    allowed = allowed.repeat(batch, 1, 1, 1)
    allowed[..., :prefix] &= readable[:, None, None, :]
    allowed |= torch.eye(allowed.shape[-1], dtype=torch.bool)  # softmax over a fully masked row is NaN
    embeddings = torch.cat([word_sums @ network.table.rows + marked * mark, network.table(inputs)], dim=1)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    mask[..., :prefix] += prefix_weights.log()[:, None, None, :]
    states = decode(network, embeddings, positions, mask)[:, prefix:]
    loss, right = answer_loss(
        network, states.unflatten(1, (-1, QUESTION_LENGTH)), targets.unflatten(1, (-1, QUESTION_LENGTH))
    )
    return loss, right.view(batch, QUESTIONS_PER_IMAGE), kinds


def described(words: Words, network: Network, lesson: Lesson, rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """The scene in words: per shape, the token rows of its colour and form, and a position among the image tokens."""
    pieces = [words.piece(network.table, form, color) for color, form in lesson.shapes]
    rng.shuffle(pieces)
    return pieces, sorted(rng.sample(range(1, 1 + IMAGE_TOKENS), len(pieces)))
