"""The demonstration: a small untrained model, real image-question pairs, the main job, its result."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from midsight.errors import MidsightError
from midsight.reports.summary import summarise
from midsight.reports.terminal import render_summary
from midsight.store.reader import Run
from midsight.testing.phi4_multimodal import write_phi4_multimodal

IMAGES = 20
QUESTIONS_PER_IMAGE = 3
SHOWN_ANSWERS = 6
UNTRAINED = "The demo model is untrained: its weights are random, so its answers are noise. The numbers are real."


def easy_vqa() -> Any:
    """The package easy-vqa; raises MidsightError where it is not installed."""
    try:
        return importlib.import_module("easy_vqa")
    except ModuleNotFoundError:
        raise MidsightError("The demo's questions come from the package easy-vqa; install midsight[demo].") from None


def write_questions(path: Path, *, images: int = IMAGES, per_image: int = QUESTIONS_PER_IMAGE) -> Path:
    """Writes questions on the first easy-vqa test images as JSONL; returns the folder of the images."""
    source = easy_vqa()
    by_image: dict[int, list[dict[str, str]]] = {}
    for question, answer, image in zip(*source.get_test_questions(), strict=True):
        row = {"image": f"{image}.png", "question": question, "answer": answer, "source": "easy-vqa test"}
        by_image.setdefault(image, []).append(row)
    rows = [row for image in sorted(by_image)[:images] for row in by_image[image][:per_image]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Path(source.get_test_image_paths()[0]).parent


def answers_table(run: Run) -> Table:
    """The first answers beside their references."""
    table = Table("image", "question", "reference", "answer (noise)", title=f"{SHOWN_ANSWERS} of {len(run)} samples")
    columns = run.table().select(["image", "question", "reference_answers", "answer"])
    for row in columns.slice(0, SHOWN_ANSWERS).to_pylist():
        answer = row["answer"].encode("unicode_escape").decode()
        table.add_row(row["image"], row["question"], ", ".join(row["reference_answers"]), answer[:40])
    return table


def run_demo(
    out: Path, load: Callable[..., Any], extract: Callable[..., Run], console: Console, *, max_new_tokens: int = 20
) -> Run:
    """Writes model and questions to `out`, extracts, and shows the run folder and how to read it."""
    out.mkdir(parents=True, exist_ok=True)
    console.print(UNTRAINED)
    model = write_phi4_multimodal(out / "model")
    questions = out / "questions.jsonl"
    images = write_questions(questions)
    console.print(f"Wrote the model to {model} and questions on real images to {questions}.")
    run = extract(
        questions,
        model=load(str(model)),
        images=images,
        out=out / "run",
        max_new_tokens=max_new_tokens,
    )
    console.print(answers_table(run))
    console.print(render_summary(summarise(run)))
    console.print(f"{UNTRAINED}\nRead it in Python:\n", markup=False)
    console.print(
        f'    import midsight\n    run = midsight.open_run("{out / "run"}")\n'
        '    X = run.matrix("query_token_representation", layer=4)   # [60, 32]\n'
        "    table = run.table()                                     # every other column",
        markup=False,
    )
    return run
