"""Measures the demo model after training, and writes the figures into docs/demo_model.md and README.md.

    python demo/evaluate.py

It asks the test scenes and the test half of easy-vqa, and reports accuracy by kind of question with Wilson's 95 %
intervals. For comparison it reports accuracy without seeing: the commonest answer to the same question, a blank
picture, the next picture of the set, and the LoRA off. An answer is right if greedy decoding gives exactly the
reference and stops. This is computed from one forward pass with several questions after one picture; the tests compare
it with midsight's own decoding. The training times come from the logs in build/demo-model.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import easy_vqa
import torch
from lessons import (
    HELD_OUT_EASY,
    QUESTION_LENGTH,
    Lesson,
    Words,
    code_digest,
    easy_kind,
    easy_lessons,
    pixels_of,
    scene_lesson,
)
from network import Network, TokenTable, answer_loss, pooled_features
from PIL import Image
from safetensors.torch import load_file, save_file
from sight import read_pictures
from stage import BATCH, THREADS, WORK, Effort
from torch import Tensor

from midsight.checkpoints.load_options import Lora
from midsight.checkpoints.loading import load_model
from midsight.demo.scenes import Question
from midsight.demo.score import Share
from midsight.demo.seeing import HIDDEN_SIZE, PACKED, write_seeing_model

ROOT = Path(__file__).resolve().parent.parent
TEST_SCENES = 2000
TESTED = 500
"""Number of questions about test scenes that the tests ask through midsight."""
CONDITIONS = ("right picture", "question alone", "blank picture", "another picture", "LoRA off")

TRAINED = ("tower", "decoder", "doubt", "sight")
"""Stages that write a log."""

RightAnswers = dict[str, list[bool]]
"""By condition: whether the answer to each question is right."""


def easy_test_lessons() -> list[Lesson]:
    """The test half of easy-vqa."""
    by_image: dict[int, list[Question]] = defaultdict(list)
    for text, answer, image in zip(*easy_vqa.get_test_questions(), strict=True):
        by_image[image].append(Question(text, answer, easy_kind(answer)))  # type: ignore[arg-type]
    return [Lesson(("easy test", image), (), tuple(by_image[image])) for image in sorted(by_image)]


def picture(lesson: Lesson) -> Image.Image:
    """The picture of a test lesson, RGB."""
    if lesson.source[0] != "easy test":
        return lesson.image()
    with Image.open(easy_vqa.get_test_image_paths()[lesson.source[1]]) as image:
        return image.convert("RGB")


def open_network(folder: Path, lora: Lora) -> Network:
    """The demo model, loaded by midsight in float32."""
    packed = load_file(PACKED)
    table = TokenTable(packed["token_ids"].tolist(), HIDDEN_SIZE)
    table.rows.data.copy_(packed["token_rows"].float())
    return Network(load_model(folder, device="cpu", dtype="float32", lora=lora).hf_model, table)


def compute_features(network: Network, lessons: Sequence[Lesson]) -> Tensor:
    """Pooled features, float32 [pictures, 256, width]; read from a file if this tower computed them before."""
    digest = hashlib.sha256(repr([lesson.source for lesson in lessons]).encode() + code_digest())
    for tensor in network.embed.img_processor.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    path = WORK / f"seen-{digest.hexdigest()[:16]}.safetensors"
    if not path.exists():
        batches = [lessons[i : i + BATCH] for i in range(0, len(lessons), BATCH)]
        computed = [
            pooled_features(network, torch.stack([pixels_of(picture(one)) for one in batch])) for batch in batches
        ]
        WORK.mkdir(parents=True, exist_ok=True)
        save_file({"features": torch.cat(computed)}, path)
    return load_file(path)["features"]


def grade(network: Network, words: Words, lessons: Sequence[Lesson], features: Tensor) -> list[bool]:
    """Whether the answer to each question is right, given these features; in the order of the lessons."""
    grades: list[bool] = []
    for i in range(0, len(lessons), BATCH):
        batch = lessons[i : i + BATCH]
        most = max(len(lesson.questions) for lesson in batch)
        rows = [
            words.row(network.table, question)
            for lesson in batch
            for question in [*lesson.questions, *lesson.questions[:1] * (most - len(lesson.questions))]
        ]
        inputs, targets = (
            torch.tensor(part).view(len(batch), most, QUESTION_LENGTH) for part in zip(*rows, strict=True)
        )
        states = read_pictures(network, features[i : i + BATCH], inputs.flatten(1))
        _, right = answer_loss(network, states, targets)
        for lesson, of_lesson in zip(batch, right.tolist(), strict=True):
            grades += of_lesson[: len(lesson.questions)]
    return grades


def grade_commonest_answers(lessons: Sequence[Lesson], learned: Sequence[Lesson]) -> list[bool]:
    """Whether the commonest answer in training to the same question, or else to its kind, is right."""
    by_text: dict[str, Counter[str]] = defaultdict(Counter)
    for lesson in learned:
        for question in lesson.questions:
            by_text[question.text][question.answer] += 1
            by_text[question.kind][question.answer] += 1
    return [
        (by_text.get(question.text) or by_text[question.kind]).most_common(1)[0][0] == question.answer
        for lesson in lessons
        for question in lesson.questions
    ]


def test_lessons(name: str) -> list[Lesson]:
    """Test lessons of `scenes` or `easy-vqa`."""
    return easy_test_lessons() if name == "easy-vqa" else [scene_lesson("test", index) for index in range(TEST_SCENES)]


@torch.inference_mode()
def measure(name: str, folder: Path) -> RightAnswers:
    """Right answers to all test questions of `scenes` or `easy-vqa`, under every condition."""
    torch.set_num_threads(THREADS)
    words, lessons = Words(), test_lessons(name)
    learned = (
        easy_lessons() if name == "easy-vqa" else [scene_lesson("train", index) for index in range(Effort().scenes)]
    )
    network = open_network(folder, "merged")
    features = compute_features(network, lessons)
    blank = pooled_features(network, pixels_of(Image.new("RGB", (64, 64), (235, 235, 235)))[None])
    right_answers = {
        "right picture": grade(network, words, lessons, features),
        "question alone": grade_commonest_answers(lessons, learned),
        "blank picture": grade(network, words, lessons, blank.expand_as(features)),
        "another picture": grade(network, words, lessons, features.roll(-1, dims=0)),
        "LoRA off": grade(open_network(folder, "off"), words, lessons, features),
    }
    for condition, right in right_answers.items():
        print(f"{name}, {condition}: {Share(sum(right), len(right))}", flush=True)
    return right_answers


def table(lessons: Sequence[Lesson], right_answers: RightAnswers) -> str:
    """Markdown table: one row per kind of question, and one for all."""
    kinds = [question.kind for lesson in lessons for question in lesson.questions]
    lines = [f"| kind | asked | {' | '.join(CONDITIONS)} |", f"| --- | --- |{' --- |' * len(CONDITIONS)}"]
    for kind in [*sorted(set(kinds)), "all"]:
        chosen = [i for i, one in enumerate(kinds) if kind in (one, "all")]
        shares = [Share(sum(right_answers[condition][i] for i in chosen), len(chosen)) for condition in CONDITIONS]
        lines.append(f"| {kind} | {len(chosen)} | {' | '.join(map(str, shares))} |")
    return "\n".join(lines)


def training_table() -> str:
    """Markdown table: steps and seconds of each training stage, from its logs."""
    packed = last_line("pack").get("sha256")
    if packed != hashlib.sha256(PACKED.read_bytes()).hexdigest():
        raise SystemExit(f"{WORK} has no logs of the training that made {PACKED}; run demo/train.py first.")
    lines = ["| stage | steps | seconds on the clock | seconds of CPU |", "| --- | --- | --- | --- |"]
    wall, cpu = 0.0, 0.0
    for stage in TRAINED:
        last = last_line(stage)
        wall, cpu = wall + last["seconds"], cpu + last["cpu_seconds"]
        lines.append(f"| {stage} | {last['step']} | {last['seconds']:.0f} | {last['cpu_seconds']:.0f} |")
    return "\n".join([*lines, f"| all | | {wall:.0f} | {cpu:.0f} |"])


def last_line(stage: str) -> dict[str, Any]:
    """Last line of a stage's log; empty without a log."""
    path = WORK / f"{stage}.log.jsonl"
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1]) if path.exists() else {}


def pictures_table() -> str:
    """Markdown table: number of pictures for training and for tuning."""
    effort, easy = Effort(), easy_lessons()
    used = {
        "tower, decoder, doubt": (easy[:-HELD_OUT_EASY], effort.scenes),
        "sight": (easy[: effort.sight_easy], effort.sight_scenes),
        "held out": (easy[-HELD_OUT_EASY:], effort.held_out),
    }
    lines = ["| for | scenes | pictures of easy-vqa |", "| --- | --- | --- |"]
    lines += [
        f"| {stage} | {own} | {sum(bool(lesson.shapes) for lesson in lessons)} |"
        for stage, (lessons, own) in used.items()
    ]
    return "\n".join(lines)


def replace_between(path: Path, name: str, text: str) -> None:
    """Replaces the text between the markers `<!-- name -->` and `<!-- end of name -->`."""
    page = path.read_text(encoding="utf-8")
    start, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"{path} has no {start.strip()}; restore the markers.")
    path.write_text(pattern.sub(lambda _: start + text + end, page), encoding="utf-8")


def run_example(path: Path, folder: Path) -> None:
    """Runs the first Python example of a page on the model in `folder`, and writes its output below it."""
    page = path.read_text(encoding="utf-8")
    example = re.search(r"```python\n(import midsight\n.*?)```\n\n```\n(.*?)```", page, re.DOTALL)
    if example is None:
        raise SystemExit(f"{path} has no Python example with its output below it; restore it.")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example[1].replace('"demo-model"', f'"{folder}", device="cpu"'), str(path), "exec"), {})  # noqa: S102
    path.write_text(page[: example.start(2)] + printed.getvalue() + page[example.end(2) :], encoding="utf-8")


def main() -> None:
    """Measures the model and writes the figures."""
    trained = training_table()
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        folder = write_seeing_model(Path(name) / "model")
        own_answers, easy_answers = pool.map(measure, ("scenes", "easy-vqa"), (folder, folder))
        run_example(ROOT / "README.md", folder)
    own, easy = test_lessons("scenes"), test_lessons("easy-vqa")
    tested = {condition: Share(sum(right[:TESTED]), TESTED) for condition, right in own_answers.items()}
    everything = {condition: Share(sum(right), len(right)) for condition, right in own_answers.items()}
    card = ROOT / "docs" / "demo_model.md"
    replace_between(card, "figures of pictures", pictures_table())
    replace_between(card, "figures of training", trained)
    replace_between(card, "figures of scenes", table(own, own_answers))
    replace_between(card, "figures of easy-vqa", table(easy, easy_answers))
    lines = [f"| {condition} | {share} |" for condition, share in tested.items()]
    replace_between(
        card, "figures of the tests", "\n".join([f"| first {TESTED} questions | right |", "| --- | --- |", *lines])
    )
    replace_between(
        ROOT / "README.md",
        "figures of the demo model",
        f"Of {everything['right picture'].asked} questions about {TEST_SCENES} new scenes, it answers\n"
        f"{everything['right picture']} correctly. The commonest answer to each question gives\n"
        f"{everything['question alone']}, the model without its LoRA {everything['LoRA off']}.",
    )
    print(f"Wrote {card} and README.md.", file=sys.stderr)


if __name__ == "__main__":
    main()
