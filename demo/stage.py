"""Code that the training stages share: settings, log, optimiser steps and questions."""

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
    """Number of steps, and number of pictures."""

    scenes: int = SCENES
    """Own scenes for tower and decoder."""
    held_out: int = 100
    """Own scenes for tuning, in addition to some of easy-vqa's training half."""
    tower_steps: int = 600
    """Steps of the tower stage."""
    decoder_steps: int = 4000
    """Steps of the decoder stage."""
    doubt_steps: int = 1500
    """Steps of the doubt stage."""
    sight_scenes: int = 3200
    """Scenes of the sight stage, the last of `scenes`; it reuses their features many times."""
    sight_easy: int = 800
    """Pictures of easy-vqa in the sight stage, the first ones."""
    aligned: int = 1000
    """Pictures of the sight stage on which the projection learns to give words."""
    align_steps: int = 600
    """Steps in which the projection learns to give words."""
    sight_steps: int = 2000
    """Steps of the sight stage."""
    held_out_easy: int = HELD_OUT_EASY
    """Pictures of easy-vqa for tuning, the last ones of its training half."""


TRIAL = Effort(24, 4, 3, 3, 3, 16, 8, 8, 3, 6, 4)
"""A trial of about half a minute: shows that the stages run, and are reproducible."""


@dataclass
class Stage:
    """One training stage: its settings, and what every stage needs at its start."""

    name: str
    """Name of the stage."""
    seed: int
    """Seed of all random numbers."""
    effort: Effort
    """Number of steps and pictures."""
    folder: Path
    """Folder for the results and logs of the stages."""
    packed: Path
    """The shipped file, which the last stage writes."""

    def __post_init__(self) -> None:
        torch.set_num_threads(THREADS)
        torch.set_flush_denormal(True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.words = Words()
        self.ids = self.words.ids_in_use()
        self.rng = random.Random(self.seed)  # noqa: S311  (not for secrets)
        self.log = Log(self.folder / f"{self.name}.log.jsonl")
        torch.manual_seed(self.seed)

    def training_lessons(self) -> list[Lesson]:
        """Lessons for training."""
        own = (scene_lesson("train", index) for index in range(self.effort.scenes))
        return [*easy_lessons()[:-HELD_OUT_EASY], *own]

    def guesses(self) -> dict[str, str]:
        """The commonest answer to each question in training."""
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        for lesson in self.training_lessons():
            for question in lesson.questions:
                answers[question.text][question.answer] += 1
        return {text: counted.most_common(1)[0][0] for text, counted in answers.items()}

    def held_out_lessons(self) -> list[Lesson]:
        """Lessons for tuning: from easy-vqa's training half, and held-out scenes."""
        own = (scene_lesson("held-out", index) for index in range(self.effort.held_out))
        return [lesson for lesson in [*easy_lessons()[-self.effort.held_out_easy :], *own] if lesson.shapes]


class Log:
    """Prints loss and accuracy, and writes them to a file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_text("", encoding="utf-8")
        self.start, self.cpu_start = time.monotonic(), cpu_seconds()

    def __call__(self, **values: Any) -> None:
        """Adds a line, with elapsed time and CPU time since the start of the stage."""
        wall, cpu = time.monotonic() - self.start, cpu_seconds() - self.cpu_start
        line = json.dumps({"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)} | values)
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


class Scores:
    """Counts right answers by kind of question."""

    def __init__(self) -> None:
        self.asked, self.right = Counter[str](), Counter[str]()

    def add(self, kinds: Sequence[str], right: Sequence[bool]) -> None:
        """Adds the questions about one picture."""
        self.asked.update(kinds)
        self.right.update(kind for kind, one in zip(kinds, right, strict=True) if one)

    def add_all(self, kinds: Sequence[Sequence[str]], right: Tensor) -> None:
        """Adds the questions about several pictures; `right` is flat."""
        for names, ones in zip(kinds, right.view(len(kinds), -1).tolist(), strict=True):
            self.add(names, ones)

    def take(self) -> dict[str, float]:
        """Share of right answers by kind since the last call."""
        shares = {kind: round(self.right[kind] / number, 3) for kind, number in sorted(self.asked.items())}
        self.asked.clear()
        self.right.clear()
        return shares


class Descent:
    """AdamW with warm-up, cosine decay and gradient clipping."""

    def __init__(self, parameters: Sequence[nn.Parameter], rate: float, steps: int) -> None:
        self.parameters = list(parameters)
        self.optimiser = torch.optim.AdamW(self.parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, rate, steps, pct_start=0.08)

    def step(self, loss: Tensor) -> None:
        """Takes one step."""
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
    """Inputs and targets [pictures, questions * length] of a few questions about each picture, and their kinds.

    `guesses` are, per picture, answers by question that replace the right ones, or None.
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
    """Kind of a question in logs; easy-vqa's have names of their own."""
    return f"easy {kind}" if lesson.source[0] == "easy" else kind


def as_bfloat16(module: nn.Module) -> None:
    """Rounds the weights to the stored dtype, so that later stages train with the shipped values."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
