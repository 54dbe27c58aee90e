"""The second stage: the base decoder answers from words that stand where a picture would, and without."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lessons import QUESTION_LENGTH, USER, Lesson, Words
from network import IMAGE_TOKENS, Network, answer_loss, build, decode, shared_prefix
from safetensors.torch import load_file, save_file
from stage import BATCH, QUESTIONS_PER_IMAGE, Descent, Marks, Stage, as_bfloat16, question_rows
from torch import Tensor

from midsight.demo.seeing import HIDDEN_SIZE

MOST_SHAPES = 4
MARK_SIZE = 1.0
"""Deviation of the mark's numbers."""


@dataclass(frozen=True)
class Course:
    """What a stage teaches the decoder."""

    told: float
    """Share of the lessons with the scene in words before the questions."""
    misled: float
    """Share of those with another scene in marked words; the rest have none."""
    rate: float
    crowds: bool
    """Whether marked words are heard as often as a picture's tokens say them, among marked tokens without a word."""


LISTEN = Course(0.7, 0.2, 3e-3, crowds=False)
DOUBT = Course(0.5, 0.4, 1.5e-3, crowds=True)


def train_decoder(stage: Stage) -> None:
    """The base decoder and the token table, on words alone: the sum of a shape's words stands where a picture would.

    Words that carry the mark tell of another scene, so the base learns to pass them over. What the projection says
    carries it from the start, and only the LoRA learns to read it.
    """
    network = build(stage.ids, stage.seed)
    mark = MARK_SIZE * torch.randn(HIDDEN_SIZE)
    teach(stage, network, mark, LISTEN, stage.effort.decoder_steps)
    save_decoder(network, mark, stage.folder / "decoder.safetensors")


def train_doubt(stage: Stage) -> None:
    """The same decoder learns to pass marked words over where they are many, as a picture's tokens are."""
    network = build(stage.ids, stage.seed)
    mark = load_decoder(network, stage.folder / "decoder.safetensors")
    teach(stage, network, mark, DOUBT, stage.effort.doubt_steps)
    save_decoder(network, mark, stage.folder / "doubt.safetensors")


def teach(stage: Stage, network: Network, mark: Tensor, course: Course, steps: int) -> None:
    """So many steps of a course; the weights are rounded at the end as they will be stored."""
    words, rng = stage.words, stage.rng
    lessons = stage.training_lessons()
    easy = [lesson for lesson in lessons if lesson.source[0] == "easy" and lesson.shapes]
    own = [lesson for lesson in lessons if lesson.source[0] != "easy"]
    decoder = [*network.model.model.layers.parameters(), *network.model.model.norm.parameters()]
    descent = Descent([*decoder, *network.table.parameters()], course.rate, steps)
    marks = {"told": Marks(), "misled": Marks(), "not_told": Marks()}
    odds = [course.told, course.misled, 1 - course.told - course.misled]
    guesses = stage.guesses() if course.crowds else None
    for step in range(steps):
        chosen = [*rng.sample(easy, BATCH // 8), *rng.sample(own, BATCH - BATCH // 8)]
        how = rng.choices(list(marks), odds, k=BATCH)
        loss, right, kinds = tell(words, network, mark, chosen, how, rng, guesses, crowds=course.crowds)
        descent.step(loss)
        for name, names, ones in zip(how, kinds, right.tolist(), strict=True):
            marks[name].add(names, ones)
        if step % 100 == 99:
            stage.log(step=step + 1, loss=round(loss.item(), 4), **{name: m.take() for name, m in marks.items()})
    for module in (network.model.model, network.table):
        as_bfloat16(module)
    with torch.no_grad():
        held_out = stage.held_out_lessons()
        for how in marks:
            for i in range(0, len(held_out), BATCH):
                chosen = held_out[i : i + BATCH]
                _, right, kinds = tell(
                    words, network, mark, chosen, [how] * len(chosen), rng, None, crowds=course.crowds
                )
                marks[how].add_all(kinds, right)
    stage.log(step=steps, held_out={name: m.take() for name, m in marks.items()})


def save_decoder(network: Network, mark: Tensor, path: Path) -> None:
    """Decoder layers, token table and mark."""
    weights = {
        name: tensor
        for name, tensor in network.model.model.state_dict().items()
        if name.startswith(("layers.", "norm."))
    }
    save_file(weights | {"rows": network.table.rows.detach(), "mark": mark}, path)


def load_decoder(network: Network, path: Path) -> Tensor:
    """Puts decoder layers and token table where they belong; returns the mark."""
    weights = load_file(path)
    network.table.rows.data.copy_(weights.pop("rows"))
    mark = weights.pop("mark")
    network.model.model.load_state_dict(weights, strict=False)
    return mark


def tell(
    words: Words,
    network: Network,
    mark: Tensor,
    chosen: Sequence[Lesson],
    how: Sequence[str],
    rng: random.Random,
    guesses: Mapping[str, str] | None,
    *,
    crowds: bool,
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Loss, right answers [scenes, questions] and kinds, of questions on scenes that are `told` in words, or not.

    Where the decoder is `misled`, the words carry the mark and tell of another of these scenes. Where it is not `told`
    and there are `guesses`, these are the right answers, by the question's words.
    """
    batch, prefix = len(chosen), 1 + MOST_SHAPES + crowds
    said = torch.zeros(batch, prefix, len(network.table.rows))
    said[:, 0, network.table.index[USER]] = 1
    marked = torch.zeros(batch, prefix, 1)
    places = torch.zeros(batch, prefix, dtype=torch.long)
    readable = torch.zeros(batch, prefix, dtype=torch.bool)
    readable[:, 0] = True
    heard = torch.ones(batch, prefix)
    for i, name in enumerate(how):
        if name == "not_told":
            continue
        pieces, positions = described(words, network, chosen[i] if name == "told" else rng.choice(chosen), rng)
        for place, piece in enumerate(pieces, start=1):
            said[i, place].index_put_((torch.tensor(piece),), torch.ones(()), accumulate=True)
        shown = slice(1, 1 + len(pieces))
        places[i, shown] = torch.tensor(positions)
        readable[i, shown] = True
        if name == "misled":
            marked[i, shown] = 1
            if crowds:
                heard[i, shown] = rng.uniform(1, IMAGE_TOKENS / MOST_SHAPES)
                places[i, -1], readable[i, -1], marked[i, -1] = rng.randint(1, IMAGE_TOKENS), True, 1
                heard[i, -1] = rng.uniform(1, IMAGE_TOKENS)
    by_lesson = [None if name == "told" else guesses for name in how]
    inputs, targets, kinds = question_rows(words, network, chosen, rng, by_lesson)
    positions, allowed = shared_prefix(prefix, QUESTIONS_PER_IMAGE, QUESTION_LENGTH)
    positions = positions.repeat(batch, 1) - prefix + 1 + IMAGE_TOKENS
    positions[:, :prefix] = places
    allowed = allowed.repeat(batch, 1, 1, 1)
    allowed[..., :prefix] &= readable[:, None, None, :]
    allowed |= torch.eye(allowed.shape[-1], dtype=torch.bool)  # a row that reads nothing would be NaN
    embeddings = torch.cat([said @ network.table.rows + marked * mark, network.table(inputs)], dim=1)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf"))
    mask[..., :prefix] += heard.log()[:, None, None, :]
    states = decode(network, embeddings, positions, mask)[:, prefix:]
    loss, right = answer_loss(
        network, states.unflatten(1, (-1, QUESTION_LENGTH)), targets.unflatten(1, (-1, QUESTION_LENGTH))
    )
    return loss, right.view(batch, QUESTIONS_PER_IMAGE), kinds


def described(words: Words, network: Network, lesson: Lesson, rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """The scene in words: for every shape the rows of its colour and form, and its place among the image tokens."""
    pieces = [words.piece(network.table, form, color) for color, form in lesson.shapes]
    rng.shuffle(pieces)
    return pieces, sorted(rng.sample(range(1, 1 + IMAGE_TOKENS), len(pieces)))
