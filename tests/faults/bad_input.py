"""Bad input to the command: each case gives one sentence, and all other samples are done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faults.command import extract_arguments, run_command
from faults.experiment import Experiment, Outcome, attempts, require
from midsight.store import open_run
from midsight.store.verify import verify_run

GROUP = "Bad input"
ALL_DONE, SOME_FAILED, WRONG_CALL = 0, 1, 2
GOOD = {"id": "good", "image": "good.png", "question": "What is it?"}
DEEP = '{"id": "bad", "image": "good.png", "question": "What?", "deep": ' + "[" * 101 + "]" * 101 + "}"

ROWS: dict[str, tuple[Any, str]] = {
    "Latin-1": (b'{"id": "bad", "image": "good.png", "question": "caf\xe9?"}', "not encoded as UTF-8"),
    "half a surrogate pair": ('{"id": "bad", "image": "good.png", "question": "\\ud800"}', "surrogate"),
    "a line cut short": ('{"id": "bad", "image": "good.png", "question": "Wha', "it cannot be read as JSON"),
    "not an object": ("[1, 2]", "it is not a JSON object"),
    "values 101 deep": (DEEP, "more than 100 deep"),
    "a field of 1,000,001 characters": ({"more": "x" * 1_000_001}, "only images may have more than 1,000,000"),
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
    "above the image folder": ("../secret/secret.png", "lies outside the image folder"),
    "down, then up and out": ("folder.png/../../secret/secret.png", "lies outside the image folder"),
    "an absolute path": ("/etc/passwd", "lies outside the image folder"),
    "a symlink out of the image folder": ("out.png", "leads out of the image folder"),
    "a folder that is a symlink out of the image folder": ("out/secret.png", "leads out of the image folder"),
    "a symlink to itself": ("loop.png", "is not a usable path|cannot be read"),
    "a device": ("/dev/zero", "lies outside the image folder"),
    "a symlink to a device": ("zero.png", "leads out of the image folder"),
    "a FIFO": ("pipe.png", "is a pipe, socket or device"),
    "a folder": ("folder.png", "is a folder"),
    "a path that does not exist": ("missing.png", "does not exist"),
    "an empty file": ("empty.png", "is empty"),
    "a web page": ("text.png", "contains no PNG"),
    "an image cut short": ("cut.png", "cannot be decoded"),
    "a NUL": ("a\0b.png", "is not a usable path"),
    "a path of 10,000 characters": ("a" * 10_000 + ".png", "cannot be read"),
    "http": ("http://example.org/a.png", "is a URL"),
    "HTTPS": ("HTTPS://example.org/a.png", "is a URL"),
    "file:": ("file:///etc/passwd", "is a file: address"),
    "data: that is not an image": ("data:image/png;base64," + "A" * 5_000, "contains no PNG"),
    "s3": ("s3://bucket/a.png", "is in a bucket"),
}
TABLES: dict[str, tuple[Any, ...]] = {
    "UTF-16": (".jsonl", json.dumps(GOOD).encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 in CSV": (".csv", "image,question\ngood.png,What?".encode("utf-16"), "UTF-16; save it as UTF-8"),
    "UTF-16 without a byte order mark": (
        ".csv",
        "image,question\ngood.png,What?".encode("utf-16-be"),
        "no column 'image'",
    ),
    "a Latin-1 header": (".csv", b"image,qu\xe9stion\ngood.png,What?", "is not encoded as UTF-8"),
    "no image column": (".jsonl", b'{"file": "good.png", "question": "What?"}', "no column 'image'"),
    "no question column": (".csv", b"image,text\ngood.png,What?", "no column 'question'"),
    "two columns with the same name": (".csv", b"image,question,n,n\ngood.png,What?,1,2", "several columns named 'n'"),
    "an id twice": (
        ".jsonl",
        f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}".encode(),
        "has the id 'good' twice",
        "--id-column",
        "id",
    ),
    "an empty file": (".jsonl", b"", "it is empty"),
    "an unknown format": (".txt", b"What?", "supported are"),
}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
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
    """A bad row between two good ones."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        row, phrase = list(ROWS.values())[number]
        if isinstance(row, dict):
            row = json.dumps({key: value for key, value in {**GOOD, "id": "bad", **row}.items() if value is not ...})
        require_failure_alone(folder, row if isinstance(row, bytes) else row.encode(), phrase)
        return {}

    return attempts(count, seed, attempt)


def bad_images(count: int, seed: int) -> Outcome:
    """A bad image between two good ones."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        image, phrase = list(IMAGES.values())[number]
        require_failure_alone(folder, json.dumps({**GOOD, "id": "bad", "image": image}).encode(), phrase)
        return {}

    return attempts(count, seed, attempt)


def bad_tables(count: int, seed: int) -> Outcome:
    """A table that cannot be read at all."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        suffix, content, phrase, *options = list(TABLES.values())[number]
        data = write_images(folder).with_suffix(suffix)
        data.write_bytes(content)
        done = run_command([*extract_arguments(data, folder / "run"), *options], folder / "output")
        require(done.exit_code == WRONG_CALL, f"it ends with {done.exit_code}: {done.output}")
        sentence = done.output.removesuffix("\n")
        require(sentence.startswith("Error: ") and "\n" not in sentence and phrase in sentence, f"it says {sentence}")
        require(not (folder / "run").exists(), "it left a run folder")
        return {}

    return attempts(count, seed, attempt)


def strange_ids(count: int, seed: int) -> Outcome:
    """An id after a byte order mark: it is read back unchanged, and no file is named after it."""

    def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
        data = write_images(folder)
        data.write_bytes(BYTE_ORDER_MARK + json.dumps({**GOOD, "id": IDS[number]}).encode())
        run = folder / "deep" / "run"
        done = run_command(extract_arguments(data, run), folder / "output")
        require(done.exit_code == ALL_DONE, f"it ends with {done.exit_code}: {done.output}")
        require(open_run(run).sample_ids() == [IDS[number]], f"the id is {open_run(run).sample_ids()}")
        require(
            {file.name for file in folder.iterdir()} == {"images", "secret", "deep", "output"}, "there are other files"
        )
        exported = run_command(
            ["export", run, "--format", "csv", "--out", folder / "deep" / "ids.csv"], folder / "output"
        )
        require(exported.exit_code == ALL_DONE, f"export ends with {exported.exit_code}: {exported.output}")
        require(verify_run(run).sound, "verify finds damage")
        return {}

    return attempts(count, seed, attempt)


def require_failure_alone(folder: Path, row: bytes, phrases: str) -> None:
    """Requires that `row` fails with one sentence, that two other rows are done, and that nothing else happens.

    The sentence contains one of `phrases`, which are separated by `|`.
    """
    data = write_images(folder)
    others = [json.dumps({**GOOD, "id": name}).encode() for name in ("before", "after")]
    data.write_bytes(b"\n".join([others[0], row, others[1]]))
    done = run_command(extract_arguments(data, folder / "run"), folder / "output")
    require(
        done.exit_code == SOME_FAILED and "Traceback" not in done.output,
        f"it ends with {done.exit_code}: {done.output}",
    )
    run = open_run(folder / "run")
    require(run.sample_ids() == ["before", "after"], f"the finished samples are {run.sample_ids()}")
    (failure,) = run.failures()
    reason = failure.reason
    require(any(phrase in reason for phrase in phrases.split("|")), f"the reason is {reason[:500]}")
    require(reason.endswith(".") and "\n" not in reason and len(reason) < 500, f"the reason is {reason[:600]}")


def write_images(folder: Path) -> Path:
    """Makes a folder with good and bad images; returns the path for a table in it."""
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
    """An experiment that always runs all of its cases."""
    return Experiment(GROUP, name, run, cases, cases)


EXPERIMENTS = (
    experiment("a row: encodings, nulls, nested values, huge fields, missing cells", bad_rows, len(ROWS)),
    experiment("an image: outside the image folder, symlinks, URLs, devices, FIFOs, damage", bad_images, len(IMAGES)),
    experiment("a table: UTF-16, Latin-1, missing columns, repeated ids", bad_tables, len(TABLES)),
    experiment(
        "an id with slashes, line ends and other odd characters, after a byte order mark", strange_ids, len(IDS)
    ),
)
