"""What the user named as data: a table file, Parquet shards, a saved Hugging Face dataset, a folder of images."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError
from midsight.samples.columnar import joint_sha256, open_arrow, open_parquet
from midsight.samples.delimited import delimited_rows, header
from midsight.samples.json_rows import array_columns, array_rows, jsonl_columns, jsonl_rows
from midsight.samples.rows import Row, Table, named

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet",
}  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")


def open_table(path: Path, split: str | None = None, limit: int | None = None) -> Table:
    """The table in a file, in the files that a pattern like `data/train-*.parquet` matches, or in a folder.

    A folder holds a dataset that `datasets` saved, or Parquet files; `split` chooses where it holds several. The
    columns of JSON are those of the first `limit` rows. Raises MidsightError for what is none of these, is not
    there or cannot be read.
    """
    try:
        if is_folder(path):
            return _open_folder(path, split)
        if split is not None:
            raise MidsightError(f"{path} has no splits; leave --split {split} out.")
        if not path.exists() and any(sign in path.name for sign in "*?["):
            files = sorted(file for file in path.parent.glob(path.name) if file.suffix == ".parquet")
            if not files:
                raise MidsightError(f"{path} matches no .parquet file.")
            return open_parquet(path, _regular(files), path.parent)
        return _open_file(path, limit)
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def is_folder(path: Path) -> bool:
    """Whether it is one; raises MidsightError where that cannot be told, as of a name that is too long."""
    try:
        return path.is_dir()
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def image_folder(path: Path, question: str) -> Table:
    """Every image below a folder with one question; names that begin with a dot are left out.

    Files are told by their suffix and sorted by path. Links to folders are not followed.
    """
    found: list[str] = []
    for folder, inner, names in os.walk(path):
        inner[:] = [name for name in inner if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        found.extend((Path(folder) / name).relative_to(path).as_posix() for name in images)
    if not found:
        raise MidsightError(f"{path} holds no image; image files end in {', '.join(IMAGE_SUFFIXES)}.")
    found.sort()
    digest = hashlib.sha256(json.dumps([question, found]).encode()).hexdigest()

    def rows(_: str) -> Iterator[Row]:
        for number, name in enumerate(found, start=1):
            yield Row(number, name, {"image": name, "question": question})

    return Table(path, "images", "row", ("image", "question"), digest, rows, path)


def _open_file(path: Path, limit: int | None) -> Table:
    kind: Any = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise MidsightError(f"{path} is no table that can be read; supported are {', '.join(_KINDS)}, and folders.")
    _regular([path])
    match kind:
        case "jsonl":
            return _text_table(path, kind, "line", jsonl_columns(path, limit), lambda _: jsonl_rows(path))
        case "json":
            return _text_table(path, kind, "element", array_columns(path, limit), lambda _: array_rows(path))
        case "csv" | "tsv":
            delimiter = "," if kind == "csv" else "\t"
            columns = header(path, delimiter)
            return _text_table(path, kind, "line", columns, lambda _: delimited_rows(path, delimiter, columns))
    return open_parquet(path, [path], path.parent)


def _text_table(path: Path, kind: Any, unit: Any, columns: tuple[str, ...], rows: Any) -> Table:
    return Table(path, kind, unit, columns, joint_sha256([path]), rows, path.parent)


def _open_folder(path: Path, split: str | None) -> Table:
    if (path / "dataset_dict.json").is_file():
        names = _json(path / "dataset_dict.json").get("splits")
        splits = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return _open_saved(path / _choose(path, splits, split))
    if (path / "state.json").is_file():
        if split is not None:
            raise MidsightError(f"{path} is one saved dataset without splits; leave --split {split} out.")
        return _open_saved(path)
    shards = _regular(sorted(path.glob("*.parquet")))
    if not shards:
        raise MidsightError(
            f"{path} is no regular file but a folder without .parquet files or a saved Hugging Face dataset; "
            "for a folder of images give --question, else name a table file."
        )
    matched = {file: _SHARD.fullmatch(file.name) for file in shards}
    splits = list(dict.fromkeys(match["split"] if match else file.stem for file, match in matched.items()))
    if split is None and not any(matched.values()):
        return open_parquet(path, shards, path)
    chosen = _choose(path, splits, split)
    files = [file for file, match in matched.items() if (match["split"] if match else file.stem) == chosen]
    counts = {int(match["count"]) for file in files if (match := matched[file])}
    if counts and counts != {len(files)}:
        raise MidsightError(f"{path} has {len(files)} of the {max(counts)} files of {chosen}; download the others.")
    return open_parquet(path, files, path)


def _choose(path: Path, splits: Sequence[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        wrong = "several splits" if split is None else f"no split {split!r}"
        raise MidsightError(f"{path} has {wrong}; choose one of {named(splits)} with --split.")
    return split


def _open_saved(path: Path) -> Table:
    """A dataset that `datasets` saved: state.json names the files."""
    _regular([path / "state.json"])
    listed = _json(path / "state.json").get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in listed or ()]
    if not names:
        raise MidsightError(f"{path / 'state.json'} names no data files; save the dataset again.")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".arrow") or Path(name).name != name:
            raise MidsightError(f"{path / 'state.json'} names {name!r}; data files are .arrow files beside it.")
    return open_arrow(path, _regular([path / str(name) for name in names]))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MidsightError(f"{path} cannot be read: {error}; save the dataset again.") from error
    return value if isinstance(value, dict) else {}


def _regular(files: Sequence[Path]) -> Sequence[Path]:
    """The files; raises MidsightError for what is none, since opening a pipe would wait and a device may never end."""
    for file in files:
        if not file.is_file():
            why = "is no regular file" if file.exists() else "does not exist"
            raise MidsightError(f"{file} {why}; give a table file.")
    return files
