"""Trains the demo model from scratch and writes the file that the package ships.

    python demo/train.py tower & python demo/train.py decoder; wait
    python demo/train.py sight && python demo/train.py again --seed 1 && python demo/train.py pack

Stages, each with its seed and two threads. tower: the vision tower names form and colour of what each image
token shows. decoder: the base decoder answers from words where a picture would stand, and without. sight: both
frozen; the LoRA for images and the projection learn to answer from the picture, several questions behind one
image. again: once more, from there. pack: the file. Choices were made on held-out training pictures, with the
logs in build/demo-model.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lessons import (
    CROP_PX,
    HELD_OUT_EASY,
    QUESTION_LENGTH,
    USER,
    Lesson,
    Priors,
    Words,
    easy_lessons,
    pixels_of,
    scene_lesson,
    token_labels,
    window_corner,
)
from network import (
    IMAGE_TOKENS,
    Network,
    add_lora,
    answer_loss,
    build,
    decode,
    pooled_features,
    project,
    shared_prefix,
    window_features,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from midsight.demo.scenes import COLORS, SHAPES
from midsight.demo.seeing import HIDDEN_SIZE, PACKED

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "demo-model"
SCENES, HELD_OUT_SCENES = 5000, 100
QUESTIONS_PER_IMAGE = 6
MOST_SHAPES = 4
BATCH = 16
TOWER_STEPS, TOWER_RATE = 600, 2e-3
WINDOWS, WHOLE, WHOLE_WEIGHT = 24, 2, 0.5
DECODER_STEPS, DECODER_RATE = 2000, 3e-3
SIGHT_EASY, SIGHT_SCENES = 800, 3200
SIGHT_STEPS, SIGHT_RATE = 750, 3e-3
GLOBAL_STEPS = 670
AGAIN_STEPS, AGAIN_GLOBAL_STEPS = 375, 345
"""So many steps see the global crop alone, which is the sub-crop once more, at half the cost."""
DESCRIBED = 0.8
"""Share of the decoder's lessons with the scene in words before the question."""
PROCESSES = 2
THREADS = 2
BLIND_EVERY = 5
"""One step in so many keeps the base blind: LoRA off, the answers those of other pictures."""


class Log:
    """Loss and accuracy, on the screen and in a file of JSON lines."""

    def __init__(self, stage: str) -> None:
        self.path = WORK / f"{stage}.log.jsonl"
        self.path.write_text("", encoding="utf-8")
        self.start = time.monotonic()

    def __call__(self, **values: Any) -> None:
        """Adds a line, with the seconds since the stage began."""
        line = json.dumps({"seconds": round(time.monotonic() - self.start, 1)} | values)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Descent:
    """AdamW with warm-up and cosine decay, gradients clipped."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, steps: int) -> None:
        self.parameters = list(parameters)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rate, steps, pct_start=0.08)

    def step(self, loss: Tensor) -> None:
        """One step down."""
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.schedule.step()


def begin(stage: str, seed: int) -> tuple[Words, list[int], Log]:
    """One thread, the seed, and the ids in use."""
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    WORK.mkdir(parents=True, exist_ok=True)
    words = Words()
    torch.manual_seed(seed)
    return words, words.ids_in_use(), Log(stage)


def seeded(seed: int) -> random.Random:
    """Draws the lessons of a stage."""
    return random.Random(seed)  # noqa: S311  (lessons, no secrets)


def training_lessons() -> list[Lesson]:
    """Pictures to learn from."""
    return [*easy_lessons()[:-HELD_OUT_EASY], *(scene_lesson("train", index) for index in range(SCENES))]


def held_out_lessons() -> list[Lesson]:
    """Pictures to choose by, drawn from the training half of easy-vqa and from scenes of their own."""
    return [*easy_lessons()[-HELD_OUT_EASY:], *(scene_lesson("held-out", index) for index in range(HELD_OUT_SCENES))]


def as_bfloat16(module: nn.Module) -> None:
    """Rounds the weights as they will be stored, so that what follows learns with the shipped ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


def train_tower(seed: int) -> None:
    """The tower and a linear classifier of its image tokens; only the tower is kept.

    A step takes windows around single shapes, which are cheap, and a few whole pictures.
    """
    _, ids, log = begin("tower", seed)
    network, rng = build(ids, seed), seeded(seed)
    heads = nn.ModuleList([nn.Linear(HIDDEN_SIZE, 1 + len(names)) for names in (SHAPES, COLORS)])
    lessons = [lesson for lesson in training_lessons() if lesson.shapes]
    descent = Descent([*network.embed.img_processor.parameters(), *heads.parameters()], TOWER_RATE, TOWER_STEPS)
    easy = [lesson for lesson in lessons if lesson.source[0] == "easy"]
    own = [lesson for lesson in lessons if lesson.source[0] != "easy"]
    right: dict[str, list[list[float]]] = {"windows": [], "whole": []}
    for step in range(TOWER_STEPS):
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
        if step % 20 == 19:
            shares = {name: np.nanmean(rows[-20:], axis=0).round(3).tolist() for name, rows in right.items()}
            log(step=step + 1, loss=round(loss.item(), 3), whole_loss=round(whole_loss.item(), 3), right=shares)
    as_bfloat16(network.embed.img_processor)
    save_file(network.embed.img_processor.state_dict(), WORK / "tower.safetensors")


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
    """Loss of form and colour, shapes and background weighing the same, and the four shares that are right."""
    loss, shares = torch.zeros(()), []
    for head, target in zip(heads, labels, strict=True):
        logits = head(features)
        for part in (target > 0, target == 0):
            if part.any():
                loss = loss + functional.cross_entropy(logits[part], target[part])
            shares.append(float((logits[part].argmax(-1) == target[part]).float().mean()))
    return loss, shares


def described(words: Words, network: Network, lesson: Lesson, rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """The scene in words: for every shape the rows of its colour and form, and its place among the image tokens."""
    pieces = [[network.table.index[i] for i in words.ids(f" {color} {form}")] for color, form in lesson.shapes]
    rng.shuffle(pieces)
    return pieces, sorted(rng.sample(range(1, 1 + IMAGE_TOKENS), len(pieces)))


def question_rows(
    words: Words, network: Network, chosen: Sequence[Lesson], rng: random.Random, priors: Priors | None = None
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Inputs and targets [pictures, questions * length] of a few questions on each picture, and their kinds.

    With `priors` the answers are those of other pictures.
    """
    inputs, targets, kinds = [], [], []
    for lesson in chosen:
        questions = list(lesson.questions)
        rng.shuffle(questions)
        questions = (questions * QUESTIONS_PER_IMAGE)[:QUESTIONS_PER_IMAGE]
        rows = [words.row(network.table, q, priors.draw(q, rng) if priors else None) for q in questions]
        inputs.append(torch.tensor([row for row, _ in rows]).flatten())
        targets.append(torch.tensor([target for _, target in rows]).flatten())
        kinds.append([kind_name(lesson, question.kind) for question in questions])
    return torch.stack(inputs), torch.stack(targets), kinds


def kind_name(lesson: Lesson, kind: str) -> str:
    """A kind of question, those of easy-vqa apart."""
    return f"easy {kind}" if lesson.source[0] == "easy" else kind


def train_decoder(seed: int) -> None:
    """The base decoder and the token table, on words alone: the sum of a shape's words stands where a picture would."""
    words, ids, log = begin("decoder", seed)
    network, rng = build(ids, seed), seeded(seed)
    lessons = training_lessons()
    easy = [lesson for lesson in lessons if lesson.source[0] == "easy"]
    own = [lesson for lesson in lessons if lesson.source[0] != "easy"]
    decoder = [*network.model.model.layers.parameters(), *network.model.model.norm.parameters()]
    descent = Descent([*decoder, *network.table.parameters()], DECODER_RATE, DECODER_STEPS)
    prefix = 1 + MOST_SHAPES
    answered: dict[bool, list[float]] = {True: [], False: []}
    kinds_right, kinds_seen = Counter[str](), Counter[str]()
    for step in range(DECODER_STEPS):
        chosen = [*rng.sample(easy, BATCH // 8), *rng.sample(own, BATCH - BATCH // 8)]
        said = torch.zeros(BATCH, prefix, len(ids) + 1)
        said[:, 0, network.table.index[USER]] = 1
        places = torch.zeros(BATCH, prefix, dtype=torch.long)
        readable = torch.zeros(BATCH, prefix, dtype=torch.bool)
        readable[:, 0] = True
        told = [bool(lesson.shapes) and rng.random() < DESCRIBED for lesson in chosen]
        for i, lesson in enumerate(chosen):
            if told[i]:
                pieces, positions = described(words, network, lesson, rng)
                for place, piece in enumerate(pieces, start=1):
                    said[i, place].index_put_((torch.tensor(piece),), torch.ones(()), accumulate=True)
                places[i, 1 : 1 + len(pieces)] = torch.tensor(positions)
                readable[i, 1 : 1 + len(pieces)] = True
        inputs, targets, kinds = question_rows(words, network, chosen, rng)
        positions, allowed = shared_prefix(prefix, QUESTIONS_PER_IMAGE, QUESTION_LENGTH)
        positions = positions.repeat(BATCH, 1) - prefix + 1 + IMAGE_TOKENS
        positions[:, :prefix] = places
        allowed = allowed.repeat(BATCH, 1, 1, 1)
        allowed[..., :prefix] &= readable[:, None, None, :]
        allowed |= torch.eye(allowed.shape[-1], dtype=torch.bool)  # a row that reads nothing would be NaN
        embeddings = torch.cat([said @ network.table.rows, network.table(inputs)], dim=1)
        states = decode(network, embeddings, positions, allowed)[:, prefix:]
        loss, right = answer_loss(
            network, states.unflatten(1, (-1, QUESTION_LENGTH)), targets.unflatten(1, (-1, QUESTION_LENGTH))
        )
        descent.step(loss)
        for i, was_told in enumerate(told):
            answered[was_told].append(float(right[i].float().mean()))
            if was_told:
                tally(kinds_seen, kinds_right, kinds[i : i + 1], right[i : i + 1])
        if step % 50 == 49:
            told_share, untold_share = mean(answered[True]), mean(answered[False])
            by_kind = shares(kinds_seen, kinds_right)
            log(step=step + 1, loss=round(loss.item(), 4), told=told_share, not_told=untold_share, kinds=by_kind)
            answered, kinds_right, kinds_seen = {True: [], False: []}, Counter[str](), Counter[str]()
    as_bfloat16(network.model.model)
    as_bfloat16(network.table)
    decoder_weights = {
        name: tensor
        for name, tensor in network.model.model.state_dict().items()
        if name.startswith(("layers.", "norm."))
    }
    save_file(decoder_weights | {"rows": network.table.rows.detach()}, WORK / "decoder.safetensors")


def look(tower: Path, sources: Sequence[tuple[str, int]]) -> np.ndarray:
    """Pooled features float16 [pictures, 256, width] of pictures, through the finished tower, on one thread."""
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


def look_at_all(lessons: Sequence[Lesson]) -> np.ndarray:
    """Features of all pictures, from a file where this tower has seen them before."""
    tower = WORK / "tower.safetensors"
    sources = [lesson.source for lesson in lessons]
    name = hashlib.sha256(tower.read_bytes() + json.dumps(sources).encode()).hexdigest()[:16]
    path = WORK / f"features-{name}.npy"
    if not path.exists():
        chunks = [sources[i : i + 20 * BATCH] for i in range(0, len(sources), 20 * BATCH)]
        with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
            np.save(path, np.concatenate(list(pool.map(look, [tower] * len(chunks), chunks))))
    return np.load(path, mmap_mode="r")


def finished_base(ids: Sequence[int], seed: int) -> Network:
    """Tower and decoder as their stages left them, with a fresh LoRA and projection."""
    network = build(ids, seed)
    network.embed.img_processor.load_state_dict(load_file(WORK / "tower.safetensors"))
    decoder = load_file(WORK / "decoder.safetensors")
    network.table.rows.data.copy_(decoder.pop("rows"))
    network.model.model.load_state_dict(decoder, strict=False)
    add_lora(network)
    return network


def learned_by_sight(network: Network) -> dict[str, nn.Parameter]:
    """LoRA, projection and separators by name."""
    return {
        name: parameter
        for name, parameter in network.model.named_parameters()
        if ".lora_" in name or "img_projection" in name or "feature_extensor" in name
    }


def read_pictures(network: Network, features: Tensor, inputs: Tensor, *, global_only: bool = False) -> Tensor:
    """States [pictures, questions, length, width] of questions behind the prefix of their picture.

    `global_only` leaves out the sub-crop, half of the image tokens, and every other token its place.
    """
    user = network.table.rows[network.table.index[USER]].expand(len(features), 1, HIDDEN_SIZE)
    prefix = torch.cat([user, project(network, features)], dim=1)
    positions, allowed = shared_prefix(prefix.shape[1], inputs.shape[1] // QUESTION_LENGTH, QUESTION_LENGTH)
    embeddings = torch.cat([prefix, network.table(inputs)], dim=1)
    if global_only:
        kept = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(1 + IMAGE_TOKENS // 2, embeddings.shape[1])])
        embeddings, positions, allowed = embeddings[:, kept], positions[:, kept], allowed[..., kept, :][..., kept]
    states = decode(network, embeddings, positions, allowed)
    return states[:, -inputs.shape[1] :].unflatten(1, (-1, QUESTION_LENGTH))


def accuracy_by_kind(
    network: Network, words: Words, lessons: Sequence[Lesson], features: np.ndarray, seed: int
) -> dict[str, float]:
    """Share of right answers on held-out pictures."""
    seen: Counter[str] = Counter()
    right: Counter[str] = Counter()
    rng = seeded(seed)
    with torch.no_grad():
        for i in range(0, len(lessons), BATCH):
            inputs, targets, kinds = question_rows(words, network, lessons[i : i + BATCH], rng)
            states = read_pictures(network, torch.from_numpy(features[i : i + BATCH]).float(), inputs)
            _, rows = answer_loss(network, states, targets.unflatten(1, (-1, QUESTION_LENGTH)))
            tally(seen, right, kinds, rows)
    return shares(seen, right)


def train_sight(seed: int, *, again: bool = False) -> None:
    """LoRA, projection and separators, on pictures; every few steps the base is kept blind.

    `again` goes on from what the first time left, with other draws.
    """
    words, ids, log = begin("again" if again else "sight", seed)
    steps, global_steps = (AGAIN_STEPS, AGAIN_GLOBAL_STEPS) if again else (SIGHT_STEPS, GLOBAL_STEPS)
    lessons, held_out = [*easy_lessons()[:SIGHT_EASY], *training_lessons()[-SIGHT_SCENES:]], held_out_lessons()
    features, held_out_features = look_at_all(lessons), look_at_all(held_out)
    log(looked=len(lessons) + len(held_out))
    network, rng = finished_base(ids, seed), seeded(seed)
    learned = learned_by_sight(network)
    if again:
        for name, tensor in load_file(WORK / "sight.safetensors").items():
            learned[name].data.copy_(tensor)
    for parameter in [*network.model.parameters(), *network.table.parameters()]:
        parameter.requires_grad_(False)
    for parameter in learned.values():
        parameter.requires_grad_(True)
    descent, priors = Descent(list(learned.values()), SIGHT_RATE, steps), Priors(lessons)
    easy = [i for i, lesson in enumerate(lessons) if lesson.source[0] == "easy"]
    own = [i for i, lesson in enumerate(lessons) if lesson.source[0] != "easy"]
    losses: dict[bool, list[float]] = {True: [], False: []}
    kinds_right, kinds_seen = Counter[str](), Counter[str]()
    for step in range(steps):
        numbers = [*rng.sample(easy, BATCH // 4), *rng.sample(own, BATCH - BATCH // 4)]
        blind = step % BLIND_EVERY == BLIND_EVERY - 1
        chosen = [lessons[i] for i in numbers]
        inputs, targets, kinds = question_rows(words, network, chosen, rng, priors if blind else None)
        switch_lora(network, on=not blind)
        pictures = torch.from_numpy(features[numbers]).float()
        states = read_pictures(network, pictures, inputs, global_only=step < global_steps)
        loss, right = answer_loss(network, states, targets.unflatten(1, (-1, QUESTION_LENGTH)))
        descent.step(loss)
        losses[blind].append(loss.item())
        if not blind:
            tally(kinds_seen, kinds_right, kinds, right)
        if step % 25 == 24:
            log(
                step=step + 1,
                loss=mean(losses[False]),
                blind_loss=mean(losses[True]),
                **shares(kinds_seen, kinds_right),
            )
            losses = {True: [], False: []}
            kinds_right, kinds_seen = Counter[str](), Counter[str]()
        if step == steps - 1:
            left = WORK / ("again.safetensors" if again else "sight.safetensors")
            save_file({name: tensor.detach() for name, tensor in learned.items()}, left)
            for on in (True, False):
                switch_lora(network, on=on)
                held_out_shares = accuracy_by_kind(network, words, held_out, held_out_features, seed)
                log(step=step + 1, lora="on" if on else "off", held_out=held_out_shares)


def switch_lora(network: Network, *, on: bool) -> None:
    """The LoRA in or out."""
    if on:
        network.model.enable_adapters()
    else:
        network.model.disable_adapters()


def tally(seen: Counter[str], right: Counter[str], kinds: Sequence[Sequence[str]], marks: Tensor) -> None:
    """Adds the questions of a batch by kind."""
    for names, of_picture in zip(kinds, marks.tolist(), strict=True):
        seen.update(names)
        right.update(name for name, one in zip(names, of_picture, strict=True) if one)


def shares(seen: Counter[str], right: Counter[str]) -> dict[str, float]:
    """The share that is right, by kind."""
    return {kind: round(right[kind] / number, 4) for kind, number in sorted(seen.items())}


def pack() -> None:
    """Writes the file of the package, in bfloat16; the projection and the LoRA are rounded here."""
    network = build(Words().ids_in_use(), 0)
    network.embed.img_processor.load_state_dict(load_file(WORK / "tower.safetensors"))
    decoder, sight = load_file(WORK / "decoder.safetensors"), load_file(WORK / "again.safetensors")
    rows = decoder.pop("rows")
    network.model.model.load_state_dict(decoder, strict=False)
    network.model.load_state_dict({k: v for k, v in sight.items() if ".lora_" not in k}, strict=False)
    weights = {k: v for k, v in network.model.state_dict().items() if "embed_tokens.weight" not in k}
    weights.pop("lm_head.weight")
    weights |= {
        f"base_model.model.{name.replace('.vision.', '.')}": tensor
        for name, tensor in sight.items()
        if ".lora_" in name
    }
    packed = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in {**weights, "token_rows": rows}.items()}
    packed["token_ids"] = torch.tensor(network.table.token_ids, dtype=torch.int32)
    save_file(packed, PACKED, metadata={"format": "pt"})
    print(f"{PACKED}: {PACKED.stat().st_size} bytes, SHA-256 {hashlib.sha256(PACKED.read_bytes()).hexdigest()}")


def mean(numbers: Sequence[float]) -> float:
    """Rounded, NaN for none."""
    return round(float(np.mean(numbers)), 4) if numbers else float("nan")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tower", "decoder", "sight", "again", "pack"])
    parser.add_argument("--seed", type=int, default=0)
    call = parser.parse_args()
    if call.stage == "pack":
        pack()
    else:
        train = {
            "tower": train_tower,
            "decoder": train_decoder,
            "sight": train_sight,
            "again": functools.partial(train_sight, again=True),
        }
        train[call.stage](call.seed)
