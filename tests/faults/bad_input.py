"""Bad input, through the command: each case is one sentence, and the rest is done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.command import extract_call, midsight
from faults.experiment import Experiment, Outcome, attempts, demand
from midsight.store import open_run
from midsight.store.verify import verify_run

GROUP = "Bad input"
ALL_DONE, SOME_FAILED, WRONG_CALL = 0, 1, 2
GOOD = {"id": "good", "image": "good.png", "question": "What is it?"}
DEEP = '{"id": "bad", "image": "good.png", "question": "What?", "deep": ' + "[" * 101 + "]" * 101 + "}"

ROWS: dict[str, tuple[Any, str]] = {
    "Latin-1": (b'{"id": "bad", "image": "good.png", "question": "caf\xe9?"}', "not encoded as UTF-8"),
    "half a surrogate pair": ('{"id": "bad", "image": "good.png", "question": "\\ud800"}', "surrogate"),
    "a line cut short": ('{"id": "bad", "image": "good.png", "question": "Wha', "no JSON that can be read"),
    "no object": ("[1, 2]", "no JSON object"),
    "values 101 deep": (DEEP, "more than 100 deep"),
    "a field of 1,000,001 characters": ({"more": "x" * 1_000_001}, "at most 1,000,000 are kept"),
    "a null question": ({"question": None}, "the question is null, not text"),
    "a null image": ({"image": None}, "the image is null, not text"),
    "a nested question": ({"question": {"text": "What?"}}, "not text"),
    "a nested image": ({"image": [["good.png"]]}, "must hold one or more paths or images"),
    "a question of spaces": ({"question": " \n"}, "the question is empty"),
    "an id that is true or false": ({"id": True}, "the id is true"),
    "no question": ({"question": ...}, "there is no question"),
    "no image": ({"image": ...}, "there is no image"),
}
IMAGES: dict[str, tuple[str, str]] = {
    "above the root": ("../secret/secret.png", "lies outside the image folder"),
    "down and up again": ("folder.png/../../secret/secret.png", "lies outside the image folder"),
    "an absolute path": ("/etc/passwd", "lies outside the image folder"),
    "a symlink out of the root": ("out.png", "lies outside the image folder"),
    "a folder that is a symlink out of the root": ("out/secret.png", "lies outside the image folder"),
    "a symlink to itself": ("loop.png", "usable path|cannot be read"),
    "a device": ("/dev/zero", "lies outside the image folder"),
    "a symlink to a device": ("zero.png", "lies outside the image folder"),
    "a FIFO": ("pipe.png", "is a pipe, socket or device"),
    "a folder": ("folder.png", "is a directory"),
    "a path that is not there": ("missing.png", "does not exist"),
    "an empty file": ("empty.png", "is empty"),
    "a web page": ("text.png", "holds no PNG"),
    "an image cut short": ("cut.png", "cannot be decoded"),
    "a NUL": ("a\0b.png", "is no usable path"),
    "a path of 10,000 characters": ("a" * 10_000 + ".png", "cannot be read"),
    "http": ("http://example.org/a.png", "is a URL"),
    "HTTPS": ("HTTPS://example.org/a.png", "is a URL"),
    "file:": ("file:///etc/passwd", "is a URL"),
    "data: that is no image": ("data:image/png;base64," + "A" * 5_000, "holds no PNG"),
    "s3": ("s3://bucket/a.png", "is a URL"),
}
TABLES: dict[str, tuple[str, bytes, str]] = {
    "UTF-16": (".jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 in CSV": (".csv", "image,question\ngood.png,What?".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": (".csv", "image,question\ngood.png,What?".encode("utf-16-be"), "no column 'image'"),
    "a Latin-1 header": (".csv", b"image,qu\xe9stion\ngood.png,What?", "is not encoded as UTF-8"),
    "no column of images": (".jsonl", b'{"img": "good.png", "question": "What?"}', "no column 'image'"),
    "no column of questions": (".csv", b"image,text\ngood.png,What?", "no column 'question'"),
    "two columns of one name": (".csv", b"image,question,n,n\ngood.png,What?,1,2", "several columns named 'n'"),
    "an id twice": (".jsonl", f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}".encode(), "has the id 'good' twice"),
    "nothing": (".jsonl", b"", "it is empty"),
    "an unknown format": (".txt", b"What?", "supported are"),
}
MARK = b"\xef\xbb\xbf"
IDS = (
    "a/b",
    "../../etc/passwd",
    "/",
    "two\nlines",
    "tab\t",
    "a\rb",
    " padded ",
    "ünïcödé \u202e",
    "=1+1",
    '"quoted"',
    "\0",
)


def bad_rows(count: int, seed: int) -> Outcome:
    """A row between two good ones."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        row, says = list(ROWS.values())[number]
        if isinstance(row, dict):
            row = json.dumps({key: value for key, value in {**GOOD, "id": "bad", **row}.items() if value is not ...})
        demand_fails_alone(folder, row if isinstance(row, bytes) else row.encode(), says)
        return {}

    return attempts(count, seed, attempt)


def bad_images(count: int, seed: int) -> Outcome:
    """The image of a row between two good ones."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        image, says = list(IMAGES.values())[number]
        demand_fails_alone(folder, json.dumps({**GOOD, "id": "bad", "image": image}).encode(), says)
        return {}

    return attempts(count, seed, attempt)


def bad_tables(count: int, seed: int) -> Outcome:
    """A table that cannot be read at all."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        suffix, content, says = list(TABLES.values())[number]
        data = write_images(folder).with_suffix(suffix)
        data.write_bytes(content)
        done = midsight(extract_call(data, folder / "run"), folder / "said")
        demand(done.exit_code == WRONG_CALL, f"it ends with {done.exit_code}: {done.said}")
        sentence = done.said.removesuffix("\n")
        demand(sentence.startswith("Error: ") and "\n" not in sentence and says in sentence, f"it says {sentence}")
        demand(not (folder / "run").exists(), "there is a run of it")
        return {}

    return attempts(count, seed, attempt)


def strange_ids(count: int, seed: int) -> Outcome:
    """An id, behind a byte order mark, that comes back as it went in and names no file."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        data = write_images(folder)
        data.write_bytes(MARK + json.dumps({**GOOD, "id": IDS[number]}).encode())
        run = folder / "deep" / "run"
        done = midsight(extract_call(data, run), folder / "said")
        demand(done.exit_code == ALL_DONE, f"it ends with {done.exit_code}: {done.said}")
        demand(open_run(run).sample_ids() == [IDS[number]], f"the id is {open_run(run).sample_ids()}")
        demand({file.name for file in folder.iterdir()} == {"images", "secret", "deep", "said"}, "it made other files")
        exported = midsight(["export", run, "--format", "csv", "--out", folder / "deep" / "ids.csv"], folder / "said")
        demand(exported.exit_code == ALL_DONE, f"export ends with {exported.exit_code}: {exported.said}")
        demand(verify_run(run).sound, "verify finds something")
        return {}

    return attempts(count, seed, attempt)


def demand_fails_alone(folder: Path, row: bytes, says: str) -> None:
    """Demands that `row` fails in one sentence that says one of the phrases in `says`, and that two others are done."""
    data = write_images(folder)
    others = [json.dumps({**GOOD, "id": name}).encode() for name in ("before", "behind")]
    data.write_bytes(b"\n".join([others[0], row, others[1]]))
    done = midsight(extract_call(data, folder / "run"), folder / "said")
    demand(
        done.exit_code == SOME_FAILED and "Traceback" not in done.said, f"it ends with {done.exit_code}: {done.said}"
    )
    run = open_run(folder / "run")
    demand(run.sample_ids() == ["before", "behind"], f"what is done is {run.sample_ids()}")
    (failure,) = run.failures()
    reason = failure.reason
    demand(any(phrase in reason for phrase in says.split("|")), f"the reason is {reason[:500]}")
    demand(reason.endswith(".") and "\n" not in reason and len(reason) < 500, f"the reason is {reason[:600]}")


def write_images(folder: Path) -> Path:
    """A folder of images, among them what is none; where the table goes, beside them."""
    images, secret = folder / "images", folder / "secret"
    (images / "folder.png").mkdir(parents=True)
    secret.mkdir()
    for file in (images / "good.png", secret / "secret.png"):
        Image.new("RGB", (16, 16), (200, 30, 30)).save(file)
    (images / "empty.png").touch()
    (images / "text.png").write_text("<html>404 Not Found</html>")
    (images / "cut.png").write_bytes((images / "good.png").read_bytes()[:-30])
    links = {"out.png": secret / "secret.png", "out": secret, "zero.png": Path("/dev/zero"), "loop.png": "loop.png"}
    for name, target in links.items():
        (images / name).symlink_to(target)
    os.mkfifo(images / "pipe.png")
    return images / "data.jsonl"


def experiment(name: str, run: Callable[[int, int], Outcome], cases: int) -> Experiment:
    """All its cases, always."""
    return Experiment(GROUP, name, run, cases, cases)


EXPERIMENTS = (
    experiment("a row: encodings, nulls, nested values, huge fields, cells that are missing", bad_rows, len(ROWS)),
    experiment("an image: outside the root, symlinks, URLs, devices, FIFOs, damage", bad_images, len(IMAGES)),
    experiment("a table: UTF-16, Latin-1, columns that are missing, ids that repeat", bad_tables, len(TABLES)),
    experiment("an id with slashes, line ends and the like, behind a byte order mark", strange_ids, len(IDS)),
)
