"""Opens what the user named as data: a table file, a pattern or folder of shards, a saved Hugging Face dataset."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

from midsight.buckets.path import BucketPath, Place
from midsight.buckets.reading import each_file
from midsight.errors import MidsightError, Option, first_line
from midsight.samples import nesting
from midsight.samples.columnar import joint_sha256, open_arrow, open_parquet
from midsight.samples.delimited import delimited_rows, find_delimiter, header
from midsight.samples.folders import IMAGE_SUFFIXES, describe_left_out, is_folder
from midsight.samples.json_rows import json_columns, json_rows
from midsight.samples.json_shape import BYTES_WITHOUT_ROWS, NAMES_OF_SPLITS, choose_split, json_shape
from midsight.samples.nesting import count_brackets
from midsight.samples.rows import Row, Table, TableKind, quoted_names
from midsight.samples.text_files import (
    COMPRESSED,
    UNREADABLE,
    guarded,
    require_table,
    table_stem,
    table_suffix,
)
from midsight.samples.webdataset import open_tar

_KINDS: Mapping[str, TableKind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".json": "json", ".parquet": "parquet",
    ".tar": "tar", ".arrow": "arrow", ".feather": "arrow",
}  # fmt: skip
_REMEDIES = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV"),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib"), "such files can run code, so write "
                    "the rows as Parquet or JSON Lines"),
    **dict.fromkeys((".zip", ".tgz", ".7z", ".rar", ".zst"), "unpack it"),
    ".txt": "write CSV, TSV or JSON Lines",
}  # fmt: skip
"""Suffix -> what to do with such a file."""
LARGE_BYTES = 20_000_000
ROWS_LOOKED_AT = 10_000
"""Files that are larger are refused if their first rows do not have the columns that are needed."""
FILES_LOOKED_AT = 8
COMPRESSION = 100
"""How many times larger text may be than its compressed file."""
_METADATA = ("dataset_info.json", "dataset_infos.json")
"""What `datasets` writes beside the files of a dataset."""
_SHARD = re.compile(r"(?P<split>.+?)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")


def open_beginning(path: Place, split: str | None = None, limit: int | None = None) -> Table | None:
    """The table as the beginning of its first files shows it, if reading all of them takes long.

    None if they are small, or if the beginning shows no columns. Raises MidsightError like `open_table`.
    """
    try:
        is_large = sum(each_file(_files_of(path), _text_bytes)) > LARGE_BYTES or _is_nested(_files_of(path))
    except OSError:
        return None
    if not is_large:
        return None
    table = open_table(path, split, min(limit or ROWS_LOOKED_AT, ROWS_LOOKED_AT), beginning=True)
    return table if table.columns else None


def _files_of(path: Place) -> Iterable[Place]:
    """The files that a path may stand for: the file itself, those of a folder, or those that match a pattern."""
    if is_folder(path):
        return chain(_entries(path), (path / "data").glob("*"))
    if not path.exists() and _is_pattern(path):
        root = _fixed_folder(path)
        return root.glob(str(cast("Any", path).relative_to(root)))
    return [path]


def _entries(folder: Place) -> Iterable[Place]:
    """What is in a folder; in a bucket only the objects."""
    return folder.files() if isinstance(folder, BucketPath) else folder.iterdir()


def _text_bytes(file: Place) -> int:
    """How large a file is, decompressed if its name says that it is compressed; 0 if it is not a file of a table."""
    if not _kind(file) or not file.is_file():
        return 0
    return file.stat().st_size * (COMPRESSION if file.suffix.lower() in COMPRESSED else 1)


def _is_nested(files: Iterable[Place]) -> bool:
    """Whether small JSON files hold so many lists and objects that reading them takes long."""
    nested = 0
    for count in each_file(files, _nested_in):
        nested += count
        if nested > nesting.MAX_NESTED:
            return True
    return False


def _nested_in(file: Place) -> int:
    is_json = _kind(file) in ("json", "jsonl")
    return count_brackets(file.read_bytes()) if is_json and _text_bytes(file) else 0


def open_table(path: Place, split: str | None = None, limit: int | None = None, *, beginning: bool = False) -> Table:
    """The table in a file, in files that match a pattern like `data/train-*.parquet`, or in a folder.

    A folder holds table files of one kind or a dataset that `datasets` saved; `split` chooses one of several splits.
    The columns of JSON are those of the first `limit` rows. With `beginning`, a list at the beginning of a JSON object
    is taken as its rows although another list may follow, and of many files the first decide; the table has no columns
    if they show none. Raises MidsightError if the path is something else, does not exist or cannot be read.
    """
    try:
        if is_folder(path):
            return _open_folder(path, split, limit, beginning=beginning)
        if not path.exists() and _is_pattern(path):
            matched = sorted(_files_of(path))
            files = [file for file in matched if _kind(file)]
            if not files:
                raise MidsightError(f"{path} matches no table file; supported are {', '.join(_KINDS)}.")
            table = _open_files(path, files, _fixed_folder(path), split, limit, beginning=beginning)
            return _with_left_out(table, path, matched, files)
        return _open_files(path, [path], path.parent, split, limit, beginning=beginning)
    except OSError as error:
        raise MidsightError(f"{path} cannot be read: {error.strerror or first_line(error)}.") from error
    except UNREADABLE as error:
        raise MidsightError(f"{path} cannot be read: {first_line(error)}; copy or download it again.") from error


def _is_pattern(path: Place) -> bool:
    return any(sign in str(path) for sign in "*?[")


def _fixed_folder(pattern: Place) -> Place:
    """The folder before the first part of a pattern that has a sign in it."""
    return next(folder for folder in pattern.parents if not any(sign in str(folder) for sign in "*?["))


def _with_left_out(table: Table, path: Place, found: Iterable[Place], read: Collection[Place]) -> Table:
    """The table with a note on the files that were found beside those that are read; images may belong to rows."""
    others = (
        file for file in found if not file.name.lower().endswith(IMAGE_SUFFIXES) and not file.name.startswith(".")
    )
    suffixes = (file.suffix.lower() for file in {*others} - {*read} if isinstance(file, BucketPath) or file.is_file())
    note = describe_left_out(path, Counter(f"*{suffix}" if suffix else "without suffix" for suffix in suffixes))
    return replace(table, notes=(*table.notes, note)) if note else table


def _kind(path: Place) -> TableKind | None:
    kind = _KINDS.get(table_suffix(path))
    return None if kind in ("parquet", "tar", "arrow") and path.suffix.lower() in COMPRESSED else kind


def _open_files(
    path: Place, files: Sequence[Place], root: Place, split: str | None, limit: int | None, *, beginning: bool = False
) -> Table:
    """The rows of files of one kind, one file after the other."""
    kinds = {_kind(file) for file in files}
    if None in kinds:
        _validate_files(files)
        remedy = _REMEDIES.get(path.suffix.lower(), "")
        if path.name.lower().endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
            remedy = "unpack it to a .tar file"
        if path.suffix.lower() in IMAGE_SUFFIXES:
            remedy = "an image needs a table with questions, or name its folder and one question"
        supported = f"supported are {', '.join(_KINDS)}, text also with {', '.join(COMPRESSED)}, and folders"
        raise MidsightError(f"{path} is not a supported table; {remedy + ', ' if remedy else ''}{supported}.")
    if len(kinds) > 1:
        names = ", ".join(sorted({table_suffix(file) for file in files}))
        raise MidsightError(f"{path} has tables of several kinds ({names}); name one, or a pattern like '*.jsonl'.")
    kind = _kind(_validate_files(files)[0])
    files = files[:FILES_LOOKED_AT] if beginning else files
    for _ in each_file(files, partial(require_table, text=kind in ("jsonl", "json", "csv", "tsv"))):
        pass
    if split is not None and kind != "json":
        raise MidsightError(f"{path} has no splits; leave ", Option("split", split), " out.")
    if kind == "parquet":
        return open_parquet(path, files, root)
    if kind == "arrow":
        return open_arrow(path, files, root)
    if kind == "tar":
        return open_tar(path, files, root, limit, beginning=beginning)
    if len(files) == 1:
        return _open_text(files[0], kind, split, limit, beginning=beginning)
    tables = [_open_text(file, kind, split, limit, is_one_of_many=True, beginning=beginning) for file in files]
    if beginning or any(table.columns for table in tables):
        return _join(path, files, tables, root)
    return _open_text(files[0], kind, split, limit)


def _open_text(
    path: Place,
    kind: Any,
    split: str | None,
    limit: int | None,
    *,
    is_one_of_many: bool = False,
    beginning: bool = False,
) -> Table:
    """The rows of a text file; one of many may have none that can be read."""
    if kind in ("csv", "tsv"):
        usual = "," if kind == "csv" else "\t"
        delimiter = find_delimiter(path, usual)
        columns = header(path, delimiter)
        rows = partial(delimited_rows, path, delimiter, columns)
        notes = () if delimiter == usual else (f"The cells of {path} are separated by {delimiter!r}.",)
        return _text_table(path, kind, "line", columns, rows, notes=notes)
    shape = json_shape(path, split, beginning=beginning)
    if split is not None and not shape.inside:
        raise MidsightError(f"{path} has no splits; leave ", Option("split", split), " out.")
    max_bytes = BYTES_WITHOUT_ROWS // (FILES_LOOKED_AT if is_one_of_many else 1) if beginning else None
    columns = json_columns(path, shape, limit, max_bytes=max_bytes, may_be_empty=is_one_of_many)
    other = (f", or another list than {shape.may_be_another!r} with ", Option("split"))
    other_rows = other if shape.may_be_another else ()
    if shape.kind != "members":
        return _text_table(path, kind, shape.unit, columns, partial(json_rows, path, shape), other_rows=other_rows)
    key = next(name for name in ("id", "key", "__key__") if name not in columns)
    rows = partial(json_rows, path, shape, key)
    return _text_table(path, kind, "element", (key, *columns), rows, id_column=key, other_rows=other_rows)


def _text_table(path: Place, kind: Any, unit: Any, columns: tuple[str, ...], rows: Any, **options: Any) -> Table:
    return Table(
        path, kind, unit, columns, lambda: joint_sha256([path]), lambda _: guarded(path, rows()), path.parent, **options
    )


def _join(path: Place, files: Sequence[Place], tables: Sequence[Table], root: Place) -> Table:
    """Text files of one kind as one table; raises MidsightError if the headers of CSV or TSV differ."""
    columns = dict.fromkeys(name for table in tables for name in table.columns)
    for file, table in zip(files, tables, strict=True):
        if table.kind in ("csv", "tsv") and {*table.columns} != {*columns}:
            raise MidsightError(
                f"{file} has the columns {quoted_names(table.columns)}, but {files[0].name} has "
                f"{quoted_names(tables[0].columns)}; all files of a dataset need the same columns."
            )

    def rows(images: Collection[str]) -> Iterator[Row]:
        chained = chain.from_iterable(_placed(table, images) for table in tables)
        return (replace(row, number=number) for number, row in enumerate(chained, start=1))

    id_columns = {table.id_column for table in tables}
    return Table(
        path, tables[0].kind, "row", tuple(columns), lambda: joint_sha256(files), rows, root,
        id_column=id_columns.pop() if len(id_columns) == 1 else None,
        notes=tuple(dict.fromkeys(note for table in tables for note in table.notes)),
    )  # fmt: skip


def _placed(table: Table, images: Collection[str]) -> Iterator[Row]:
    return (replace(row, place=f"{table.path}, {table.unit} {row.number}") for row in table.rows(images))


def _open_folder(path: Place, split: str | None, limit: int | None, *, beginning: bool) -> Table:
    if (path / "dataset_dict.json").is_file():
        names = _read_object(path / "dataset_dict.json").get("splits")
        splits = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        return _open_saved(path / choose_split(path, splits, split))
    if (path / "state.json").is_file():
        if split is not None:
            saved = f"{path} is one saved dataset without splits; leave "
            raise MidsightError(saved, Option("split", split), " out.")
        return _open_saved(path)
    return _open_shards(path, split, limit, beginning=beginning)


def _open_shards(path: Place, split: str | None, limit: int | None, *, beginning: bool) -> Table:
    """The table files of a folder; those named like `train-00000-of-00004.parquet` are shards of a split."""
    shards = _shards(path)
    if not shards and is_folder(path / "data"):
        return replace(_open_shards(path / "data", split, limit, beginning=beginning), root=path)
    if not shards:
        raise MidsightError(
            f"{path} is a folder without table files ({', '.join(_KINDS)}) or a saved Hugging Face dataset; for a "
            "folder of images give ",
            Option("question"),
            ", else name a table file.",
        )
    stems = {file: table_stem(file) for file in shards}
    matched = {file: _SHARD.fullmatch(stem) for file, stem in stems.items()}
    splits = [stem for stem in stems.values() if stem in NAMES_OF_SPLITS]
    if split is None and len(splits) < 2 and not any(matched.values()):
        table = _open_files(path, shards, path, None, limit, beginning=beginning)
        return _with_left_out(table, path, _entries(path), shards)
    split_of = {file: match["split"] if match else stems[file] for file, match in matched.items()}
    chosen = choose_split(path, list(dict.fromkeys(split_of.values())), split)
    files = [file for file in shards if split_of[file] == chosen]
    counts = {int(match["count"]) for file in files if (match := matched[file])}
    if counts and counts != {len(files)}:
        raise MidsightError(f"{path} has {len(files)} of the {max(counts)} files of {chosen}; download the others.")
    table = _open_files(path, files, path, None, limit, beginning=beginning)
    return _with_left_out(table, path, _entries(path), shards)


def _shards(path: Place) -> Sequence[Place]:
    """The Parquet files of a folder; without them its tar or Arrow files, else its text files, `.json` last."""
    found = (file for file in _entries(path) if _kind(file) and not file.name.startswith("."))
    files = sorted(file for file in found if file.name not in _METADATA)
    for kinds in (("parquet",), ("tar",), ("arrow",), ("jsonl", "csv", "tsv"), ("json",)):
        if chosen := [file for file in files if _kind(file) in kinds]:
            return _validate_files(chosen)
    return ()


def _open_saved(path: Place) -> Table:
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
    return open_arrow(path, _validate_files([path / str(name) for name in names]), path)


def _read_object(path: Place) -> dict[str, Any]:
    """The JSON object in a file; empty if the file holds another value."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MidsightError(f"{path} cannot be read: {error}; save the dataset again.") from error
    return value if isinstance(value, dict) else {}


def _validate_files(files: Sequence[Place]) -> Sequence[Place]:
    """The files; raises MidsightError unless all are regular: opening a pipe would wait, and a device may never end."""
    for file, is_file in zip(files, each_file(files, lambda file: file.is_file()), strict=True):
        if not is_file:
            problem = "is not a regular file" if file.exists() else "does not exist"
            raise MidsightError(f"{file} {problem}; give a table file.")
    return files
