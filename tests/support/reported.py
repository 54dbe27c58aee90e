"""Runs to make reports of: questions on pictures that are on disk, with labels and a finding."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from midsight.analysis import Run, open_run
from midsight.reports.page.content import Report, Samples
from midsight.samples.images import image_id
from midsight.store import RunWriter
from support.made_up import make_dataset_spec, make_failure, make_model_spec, make_record, make_request, make_spec
from support.planted import IMAGE, QUERY, planted

MANY = 20_000
HOSTILE_NAMES = ('"quoted" & <b>.png', "right\u202eto left.png", "it's.png")
HOSTILE_QUESTION = "<script>alert(1)</script>"
HOSTILE_ANSWER = "</td></tr></table></script><b>bold</b>"


def write_reported(
    folder: Path, *, images: int = 30, questions: int = 3, failures: int = 0, hostile: bool = False, **options: Any
) -> Run:
    """A run of yes/no questions, with its dataset and pictures in `folder`; `options` change its spec."""
    made = planted(images=images, questions=questions)
    vectors = {name: made[name].shape[1] for name in (QUERY.format(0), QUERY.format(1), IMAGE)}
    pictures = [_write_picture(folder / name, number) for number, name in enumerate(_names(images, hostile))]
    answers = options.pop("answers", True)
    spec = make_spec(
        answers=answers,
        vectors=vectors,
        extras={"kind": "string", "size": "int64"},
        model=make_model_spec(),
        request=make_request(
            positions=("vision_token", "query_token"), residual=False, vision="none", answers=answers,
            max_new_tokens=200 if answers else None,
        ),
        dataset=make_dataset_spec(
            path=str(folder / "data.jsonl"), rows=images * questions + failures, image_column="image",
            question_column="question", id_column="id", answer_column="answer",
        ),
        **options,
    )  # fmt: skip
    rows = [_row(index, made, pictures, hostile) for index in range(images * questions)]
    given = [{key: row[key] for key in ("id", "image", "question", "answer", "kind", "size")} for row in rows]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    with RunWriter(folder / "run", spec) as writer:
        for index, row in enumerate(rows):
            writer.add(_record(index, row, spec, {name: made[name][index] for name in vectors}, answers))
        for number in range(failures):
            where = images * questions + number
            writer.fail(make_failure(where, f"The image pictures/{number}.png does not exist."))
    return open_run(folder / "run")


def _names(images: int, hostile: bool) -> list[str]:
    names = [f"picture-{number:03}.png" for number in range(images)]
    return [*HOSTILE_NAMES[:images], *names[len(HOSTILE_NAMES) :]] if hostile else names


def _write_picture(path: Path, number: int) -> tuple[str, str]:
    """Name and image id of a picture with a gradient and a square."""
    x, y = np.meshgrid(np.arange(200), np.arange(120))
    pixels = np.stack([x + number, y * 2, np.full_like(x, 40 + 5 * number)], axis=-1).astype(np.uint8)
    pixels[30:80, 20 + number : 70 + number] = 255 - number
    image = Image.fromarray(pixels)
    image.save(path)
    return path.name, image_id(image)


def _row(index: int, made: dict[str, np.ndarray], pictures: list[tuple[str, str]], hostile: bool) -> dict[str, Any]:
    image = int(made["image"][index])
    wanted = "yes" if index % 2 else "no"
    said = wanted if made["right"][index] else {"yes": "no", "no": "yes"}[wanted]
    kind = "dog" if index % 3 else "cat"
    row = {
        "id": f"s{index}", "image": pictures[image][0], "image_id": pictures[image][1], "answer": wanted, "said": said,
        "question": f"Is there a {kind} in picture {image}?", "kind": kind, "size": index % 5,
        "logprob": float(made["logprob"][index]),
    }  # fmt: skip
    if hostile and index < 3:
        row |= {"question": HOSTILE_QUESTION, "said": [HOSTILE_ANSWER, "x" * 1_000_000, "\u202eabc"][index]}
    return row


def _record(index: int, row: dict[str, Any], spec: Any, vectors: dict[str, np.ndarray], answers: bool) -> Any:
    rest = float(np.log1p(-np.exp(row["logprob"])))
    heard = {
        "answer": row["said"], "answer_token_ids": (1 if row["said"] == "yes" else 2, 9), "finish_reason": "stop",
        "answer_logprobs": (row["logprob"], -0.01), "first_token_entropy": 0.5, "first_token_top_ids": (1, 2),
        "first_token_top_logprobs": (row["logprob"], rest),
    }  # fmt: skip
    return make_record(
        index, spec, sample_id=row["id"], image=row["image"], image_id=row["image_id"], question=row["question"],
        reference_answers=(row["answer"],), extras={"kind": row["kind"], "size": row["size"]}, vectors=vectors,
        **(heard if answers else dict.fromkeys(heard)),
    )  # fmt: skip


def many_samples(report: Report, answer_characters: int) -> Report:
    """The report with 20,000 different samples, 500 pictures and a map of all of them."""
    letters = "abcdefghijklmnopqrstuvwxyz ÄΩ<"
    rows = range(MANY)
    samples = Samples(
        total=MANY,
        sample_id=tuple(f"sample-{row}" for row in rows),
        input_index=tuple(rows),
        image=tuple(f"folder/image-{row // 4}.jpg" for row in rows),
        question=tuple(f"Is there a thing of kind {row % 7919} in the picture, to the left of it?" for row in rows),
        answer=tuple(((f"{row} " + letters[row % 29 :] + letters) * 99)[:answer_characters] for row in rows),
        references=tuple((f"reference {row % 50}",) for row in rows),
        label=tuple(row % 3 > 0 for row in rows),
        risk=tuple((row * 37 % 1000) / 1000 for row in rows),
        risk_source="made up",
        confidence=tuple((row * 91 % 997) / 997 for row in rows),
        extras={"kind": tuple(f"kind {row % 12}" for row in rows), "size": tuple(row % 640 for row in rows)},
        picture=tuple(row // 4 if row < 2000 else None for row in rows),
        pictures=tuple(f"data:image/webp;base64,{number:08}{'A' * 8000}" for number in range(500)),
    )
    assert report.map is not None
    x, y = (tuple(float(row * step % size) for row in rows) for step, size in ((7, 1013), (3, 911)))
    return replace(report, samples=samples, map=replace(report.map, x=x, y=y))
