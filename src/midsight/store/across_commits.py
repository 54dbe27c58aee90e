"""What a verification finds by looking at all commits together: repeated samples, lost records, gaps."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa

from midsight.buckets.path import Place
from midsight.errors import counted
from midsight.store.commits import Commit, CommitKey, list_commits, lost_records, part_path, record_path
from midsight.store.examine import KEYS, Tally, within
from midsight.store.files import shard_name
from midsight.store.numbers import numbers_of
from midsight.store.parts import damaged_part


def find_strays(
    path: Place, listed: list[CommitKey], replaced: set[CommitKey]
) -> tuple[dict[CommitKey, str], list[str]]:
    """Parts that lost their record, each with the evidence, and notes on other leftovers and gaps."""
    newest = dict(listed)
    parts = list_commits(path, ".parquet")
    bare = [key for key in parts if key not in {*listed, *replaced} and not record_path(path, *key).exists()]
    lost = lost_records(path, replaced)
    notes = [
        f"{within(path, part_path(path, *key))} is not committed: a writer died there or is still running; the next "
        "start deletes it and extracts its samples again."
        for key in bare
        if key not in lost
    ]
    if left := replaced & {*parts, *listed}:
        merged = counted(len(left), "merged commit is", "merged commits are")
        notes.append(f"{merged} still there; the next start or compact deletes what is left.")
    known = {*listed, *parts, *replaced}
    for shard in sorted(newest):
        missing = _gaps([number for of, number in known if of == shard and number <= newest[shard]])
        if missing:
            notes.append(
                f"Shard {shard_name(shard)} lacks {counted(sum(map(len, missing)), 'commit')} ({_listed(missing)}): "
                "dropped, or lost."
            )
    return lost, notes


def find_repeats(path: Place, tally: Tally, key: str, what: str) -> None:
    """Add a finding for every part with a value of the column `key` that this part or an earlier one holds already.

    `what` names the value in the finding, with `{}` or `{!r}` in its place.
    """
    commits = [number for number, rows in enumerate(tally.rows) for _ in rows.column(key).chunks]
    chunks = [chunk for rows in tally.rows for chunk in rows.column(key).chunks]
    counts = pa.chunked_array(chunks, KEYS.field(key).type).value_counts()
    often = numbers_of(counts.field("counts")) > 1
    if not often.any():
        return
    repeated = {*counts.field("values").filter(pa.array(often)).to_pylist()}
    redundant = _redundant(tally)
    first: dict[str | int, Commit] = {}
    for number, chunk in zip(commits, chunks, strict=True):
        commit = tally.sound[number]
        for value in [value for value in chunk.to_pylist() if value in repeated]:
            if value not in first:
                first[value] = commit
                continue
            file = part_path(path, *commit.key)
            why = f"its {what.format(value)} is in {first[value].name} already"
            tally.add(within(path, file), str(damaged_part(file, why)), droppable=number in redundant)


def _redundant(tally: Tally) -> set[int]:
    """The sound commits, by number, whose rows of the dataset are all in earlier ones, so that none is lost."""
    kept: set[int] = set()
    redundant: set[int] = set()
    for number, rows in enumerate(tally.rows):
        indices = {*rows.column("input_index").to_pylist()}
        if indices <= kept:
            redundant.add(number)
        kept |= indices
    return redundant


def count_failures(tally: Tally) -> int:
    """Number of samples that failed and have no row in a sound part."""
    failed = {failure.sample_id for commit in tally.sound for failure in commit.failures}
    for rows in tally.rows if failed else ():
        failed.difference_update(rows.column("sample_id").to_pylist())
    return len(failed)


def _gaps(counters: list[int]) -> list[range]:
    """The counters that are missing before each of these."""
    ordered = sorted(counters)
    gaps = (range(before + 1, after) for before, after in pairwise([-1, *ordered]))
    return [gap for gap in gaps if gap]


def _listed(gaps: list[range]) -> str:
    shown = [str(gap.start) if len(gap) == 1 else f"{gap.start} to {gap.stop - 1}" for gap in gaps[:8]]
    return ", ".join(shown) + (", ..." if len(gaps) > 8 else "")
