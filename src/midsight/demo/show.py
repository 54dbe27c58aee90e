"""The demo: a small model, questions about test scenes, the extraction, and its results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from midsight.demo.findings import show_findings
from midsight.demo.scenes import ask, draw, make_scene
from midsight.demo.score import Share, by_kind, is_right
from midsight.demo.seeing import seeing_model
from midsight.demo.sheet import contact_sheet
from midsight.errors import MidsightError, Option, counted
from midsight.reports.page.summary.choice import ReportOptions
from midsight.reports.page.write import write_report
from midsight.reports.summary import summarise
from midsight.reports.terminal import render_summary
from midsight.store.reader import Run

SCENES = 240
SHOWN_ANSWERS = 8
SHEET_PICTURES = 24
LAYER = 3
"""Decoder layer in the printed example."""
TRAINED = (
    "The demo model is a tiny Phi-4-multimodal, trained on drawn shapes. It has not seen these scenes, and some "
    "answers are wrong."
)


def write_questions(path: Path, *, scenes: int = SCENES) -> Path:
    """Writes questions about the first test scenes to `path` as JSONL, and the pictures; returns their folder."""
    images = path.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(scenes):
        name = f"scene-{index:04}.png"
        draw(make_scene("test", index)).save(images / name)
        for number, question in enumerate(ask("test", index)):
            row = {"id": f"{index:04}-{number}", "image": name, "question": question.text, "answer": question.answer}
            rows.append(row | {"kind": question.kind})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return images


def answers_table(rows: list[dict[str, Any]]) -> Table:
    """Table of the first answers with their references."""
    table = Table(
        "image", "question", "reference", "answer", "", title=f"{SHOWN_ANSWERS} of {counted(len(rows), 'sample')}"
    )
    for row in rows[:SHOWN_ANSWERS]:
        answer = row["answer"].encode("unicode_escape").decode()[:40]
        right = is_right(row["answer"], row["reference_answers"])
        table.add_row(
            row["image"], row["question"], ", ".join(row["reference_answers"]), answer, "right" if right else "wrong"
        )
    return table


def accuracy_table(shares: Mapping[str, Share]) -> Table:
    """Table of right answers by kind of question."""
    table = Table("kind", "right", "asked", "share (95 % interval)", title="Right answers")
    for kind, share in shares.items():
        table.add_row(kind, str(share.right), str(share.asked), str(share))
    return table


def run_demo(out: Path, extract: Callable[..., Run], console: Console, *, scenes: int = SCENES) -> Run:
    """Writes pictures and questions to `out`, extracts them, and shows the answers and how to read the run."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MidsightError(
            f"The demo cannot write to {out} ({error.strerror}); give another ", Option("out"), "."
        ) from error
    console.print(TRAINED)
    model = seeing_model()
    questions = out / "questions.jsonl"
    images = write_questions(questions, scenes=scenes)
    console.print(f"The model is in {model}, the questions are in {questions}.", soft_wrap=True, markup=False)
    run = extract(questions, model=model, images=images, out=out / "run")
    columns = ["image", "question", "kind", "reference_answers", "answer"]
    rows = run.table().select(columns).to_pylist()
    shares = by_kind(rows)
    sheet = out / "answers.html"
    page = contact_sheet(rows, images, shares, intro=TRAINED, pictures=SHEET_PICTURES)
    sheet.write_text(page, encoding="utf-8")
    console.print(answers_table(rows))
    console.print(accuracy_table(shares))
    console.print(render_summary(summarise(run)))
    show_findings(run, console)
    report = out / "report.html"
    write_report(run, report, ReportOptions())
    matrix = run.matrix("query_token_representation", layer=LAYER)
    console.print(
        f"The run as a page, with a map of its vectors: {report}\nPictures with answers: {sheet}\n"
        "Read the run in Python:\n",
        markup=False,
        soft_wrap=True,
    )
    console.print(
        f'    import midsight\n    run = midsight.open_run("{run.path}")\n'
        f'    X = run.matrix("query_token_representation", layer={LAYER})   # {list(matrix.shape)}\n'
        "    table = run.table()                                     # every other column",
        markup=False,
        soft_wrap=True,
    )
    return run
