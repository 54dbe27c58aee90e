"""Opens what the user named as data: a table file, Parquet shards, a saved Hugging Face dataset, a folder of images."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError, Option
from midsight.samples.columnar import joint_sha256, open_arrow, open_parquet
from midsight.samples.delimited import delimited_rows, header
from midsight.samples.json_rows import array_columns, array_rows, jsonl_columns, jsonl_rows
from midsight.samples.rows import Row, Table, quoted_names

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_KINDS = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet",
}  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")


def open_table(path: Path, split: str | None = None, limit: int | None = None) -> Table:
    """The table in a file, in files that match a pattern like `data/train-*.parquet`, or in a folder.

    A folder holds Parquet files or a dataset that `datasets` saved; `split` chooses one of several splits. The
    columns of JSON are those of the first `limit` rows. Raises MidsightError if the path is something else, does
    not exist or cannot be read.
    """
    try:
        if is_folder(path):
            return _open_folder(path, split)
        if split is not None:
            raise MidsightError(f"{path} has no splits; leave ", Option("split", split), " out.")
        if not path.exists() and any(sign in path.name for sign in "*?["):
            files = sorted(file for file in path.parent.glob(path.name) if file.suffix == ".parquet")
            if not files:
                raise MidsightError(f"{path} matches no .parquet file.")
            return open_parquet(path, _validate_files(files), path.parent)
        return _open_file(path, limit)
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def is_folder(path: Path) -> bool:
    """Whether the path is a folder; raises MidsightError if it cannot be read, as with a name that is too long."""
    try:
        return path.is_dir()
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or error}.") from error


def image_folder(path: Path, question: str) -> Table:
    """A table with every image below a folder, each with the same question; raises MidsightError without images.

    Images are recognised by suffix and sorted by path. Names that begin with a dot are left out, and links to
    folders are not followed.
    """
    found: list[str] = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))
        found.extend((Path(folder) / name).relative_to(path).as_posix() for name in images)
    if not found:
        raise MidsightError(f"{path} contains no image; image files end in {', '.join(IMAGE_SUFFIXES)}.")
    found.sort()
    digest = hashlib.sha256(json.dumps([question, found]).encode()).hexdigest()

    def rows(_: str) -> Iterator[Row]:
        for number, name in enumerate(found, start=1):
            yield Row(number, name, {"image": name, "question": question})

    return Table(path, "images", "row", ("image", "question"), digest, rows, path)


def _open_file(path: Path, limit: int | None) -> Table:
    kind: Any = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise MidsightError(f"{path} is not a supported table; supported are {', '.join(_KINDS)}, and folders.")
    _validate_files([path])
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
        names = _read_object(path / "dataset_dict.json").get("splits")
        splits = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return _open_saved(path / _choose_split(path, splits, split))
    if (path / "state.json").is_file():
        if split is not None:
            saved = f"{path} is one saved dataset without splits; leave "
            raise MidsightError(saved, Option("split", split), " out.")
        return _open_saved(path)
    return _open_shards(path, split)


def _open_shards(path: Path, split: str | None) -> Table:
    """The Parquet files of a folder; those named like `train-00000-of-00004.parquet` are shards of a split."""
    shards = _validate_files(sorted(path.glob("*.parquet")))
    if not shards:
        raise MidsightError(
            f"{path} is a folder without .parquet files or a saved Hugging Face dataset; for a folder of images give ",
            Option("question"),
            ", else name a table file.",
        )
    matched = {file: _SHARD.fullmatch(file.name) for file in shards}
    if split is None and not any(matched.values()):
        return open_parquet(path, shards, path)
    split_of = {file: match["split"] if match else file.stem for file, match in matched.items()}
    chosen = _choose_split(path, list(dict.fromkeys(split_of.values())), split)
    files = [file for file in shards if split_of[file] == chosen]
    counts = {int(match["count"]) for file in files if (match := matched[file])}
    if counts and counts != {len(files)}:
        raise MidsightError(f"{path} has {len(files)} of the {max(counts)} files of {chosen}; download the others.")
    return open_parquet(path, files, path)


def _choose_split(path: Path, splits: Sequence[str], split: str | None) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        problem = "several splits" if split is None else f"no split {split!r}"
        raise MidsightError(f"{path} has {problem}; choose one of {quoted_names(splits)} with ", Option("split"), ".")
    return split


def _open_saved(path: Path) -> Table:
    """A dataset that `datasets` saved: its state.json names the files."""
    state = path / "state.json"
    _validate_files([state])
    listed = _read_object(state).get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in listed or ()]
    if not names:
        raise MidsightError(f"{state} names no data files; save the dataset again.")
    for name in names:
        if not isinstance(name, str) or not name.endswith(".arrow") or Path(name).name != name:
            raise MidsightError(f"{state} names {name!r}; data files must be .arrow files in the same folder.")
    return open_arrow(path, _validate_files([path / str(name) for name in names]))


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file holds another value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MidsightError(f"{path} cannot be read: {error}; save the dataset again.") from error
    return value if isinstance(value, dict) else {}


def _validate_files(files: Sequence[Path]) -> Sequence[Path]:
    """The files; raises MidsightError unless all are regular: opening a pipe would wait, and a device may never end."""
    for file in files:
        if not file.is_file():
            problem = "is not a regular file" if file.exists() else "does not exist"
            raise MidsightError(f"{file} {problem}; give a table file.")
    return files
