"""What the stages of training share: their effort, seed and folder, their log, their steps, their questions."""

from __future__ import annotations

import json
import random
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lessons import HELD_OUT_EASY, SCENES, Lesson, Words, draw_questions, easy_lessons, scene_lesson
from network import Network
from torch import Tensor, nn

WORK = Path(__file__).resolve().parent.parent / "build" / "demo-model"
QUESTIONS_PER_IMAGE = 6
BATCH = 16
THREADS = 1


@dataclass(frozen=True)
class Effort:
    """How many steps, and on how many pictures."""

    scenes: int = SCENES
    """Of our own, for tower and decoder."""
    held_out: int = 100
    """Scenes to choose by, beside some of easy-vqa's training half."""
    tower_steps: int = 600
    decoder_steps: int = 4000
    doubt_steps: int = 1500
    sight_scenes: int = 3200
    """The last of `scenes`: the sight stage goes over its pictures many times, so it keeps their features."""
    sight_easy: int = 800
    """The first of easy-vqa."""
    aligned: int = 1000
    """Of the pictures of the sight stage, those that the projection learns to put into words."""
    align_steps: int = 600
    sight_steps: int = 2000


TRIAL = Effort(40, 8, 3, 3, 3, 32, 32, 16, 3, 10)
"""For seeing in a minute that stages run, and run alike."""


@dataclass
class Stage:
    """One stage's seed, effort and folder, and what all stages begin with."""

    name: str
    seed: int
    effort: Effort
    folder: Path
    """Of what stages leave for the next one, and of their logs."""
    packed: Path
    """The file of the package."""

    def __post_init__(self) -> None:
        torch.set_num_threads(THREADS)
        torch.set_flush_denormal(True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.words = Words()
        self.ids = self.words.ids_in_use()
        self.rng = random.Random(self.seed)  # noqa: S311  (lessons, no secrets)
        self.log = Log(self.folder / f"{self.name}.log.jsonl")
        torch.manual_seed(self.seed)

    def training_lessons(self) -> list[Lesson]:
        """Pictures to learn from."""
        own = (scene_lesson("train", index) for index in range(self.effort.scenes))
        return [*easy_lessons()[:-HELD_OUT_EASY], *own]

    def guesses(self) -> dict[str, str]:
        """The commonest answer to each question's words in training."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for lesson in self.training_lessons():
            for question in lesson.questions:
                answers[question.text][question.answer] += 1
        return {text: counted.most_common(1)[0][0] for text, counted in answers.items()}

    def held_out_lessons(self) -> list[Lesson]:
        """Pictures to choose by, of the training half of easy-vqa and of scenes of their own."""
        own = (scene_lesson("held-out", index) for index in range(self.effort.held_out))
        return [lesson for lesson in [*easy_lessons()[-HELD_OUT_EASY:], *own] if lesson.shapes]


class Log:
    """Loss and accuracy, on the screen and in a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("", encoding="utf-8")
        self.start, self.cpu_start = time.monotonic(), cpu_seconds()

    def __call__(self, **values: Any) -> None:
        """Adds a line, with the seconds on the clock and on the processors since the stage began."""
        wall, cpu = time.monotonic() - self.start, cpu_seconds() - self.cpu_start
        line = json.dumps({"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)} | values)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Marks:
    """Answers counted by kind."""

    def __init__(self) -> None:
        self.seen, self.right = Counter[str](), Counter[str]()

    def add(self, kinds: Sequence[str], right: Sequence[bool]) -> None:
        """The questions on one picture."""
        self.seen.update(kinds)
        self.right.update(kind for kind, one in zip(kinds, right, strict=True) if one)

    def add_all(self, kinds: Sequence[Sequence[str]], right: Tensor) -> None:
        """The questions on several pictures; `right` is flat."""
        for names, ones in zip(kinds, right.view(len(kinds), -1).tolist(), strict=True):
            self.add(names, ones)

    def take(self) -> dict[str, float]:
        """The share that is right, by kind, since the last time."""
        shares = {kind: round(self.right[kind] / number, 3) for kind, number in sorted(self.seen.items())}
        self.seen.clear()
        self.right.clear()
        return shares


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


def question_rows(
    words: Words,
    network: Network,
    chosen: Sequence[Lesson],
    rng: random.Random,
    guesses: Sequence[Mapping[str, str] | None] | None = None,
) -> tuple[Tensor, Tensor, list[list[str]]]:
    """Inputs and targets [pictures, questions * length] of a few questions on each picture, and their kinds.

    Where a picture has `guesses`, the answers are these, by the question's words.
    """
    inputs, targets, kinds = [], [], []
    for lesson, guess in zip(chosen, guesses or [None] * len(chosen), strict=True):
        questions = draw_questions(lesson, QUESTIONS_PER_IMAGE, rng)
        if guess is not None:
            questions = [replace(question, answer=guess[question.text]) for question in questions]
        rows = [words.row(network.table, question) for question in questions]
        inputs.append(torch.tensor([row for row, _ in rows]).flatten())
        targets.append(torch.tensor([target for _, target in rows]).flatten())
        kinds.append([kind_name(lesson, question.kind) for question in questions])
    return torch.stack(inputs), torch.stack(targets), kinds


def kind_name(lesson: Lesson, kind: str) -> str:
    """A kind of question, those of easy-vqa apart."""
    return f"easy {kind}" if lesson.source[0] == "easy" else kind


def as_bfloat16(module: nn.Module) -> None:
    """Rounds the weights as they will be stored, so that what follows learns with the shipped ones."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
