"""Upload of a run to a dataset repository on the hub: resumable, and compared with the hub's checksums afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midsight.analysis import Run, open_run
from midsight.buckets.path import Place
from midsight.errors import MidsightError
from midsight.sharing.card import is_unchanged, write_card
from midsight.store.files import PARTS, RUN_JSON
from midsight.store.hub import HubAddress, parse_address, reporting_hub_errors, require_writable

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
OF_RUN = ("parts/", "annotations/", "findings/")
"""Folders whose files on the hub are the run's, so that those which it has no longer are removed."""
FILES_IN_COMMIT = 100
"""Files of one commit on the hub, about; what a commit has is not uploaded again."""


@dataclass(frozen=True)
class Pushed:
    """What an upload did."""

    address: HubAddress
    """Where the run is."""
    uploaded: int
    """Files that were uploaded."""
    there: int
    """Files that were there already."""
    removed: int
    """Files of the run on the hub that the run has no longer."""


OnFiles = Callable[[int, int], None]
"""Called with the number of files that are on the hub, and of all."""


def push(path: str | Place, to: str, *, private: bool = False, on_files: OnFiles = lambda *_: None) -> Pushed:
    """Uploads a run, or what is new in it, with a dataset card.

    The repository is made if it does not exist. `run.json` comes last, so what broke off is no run yet; the same call
    goes on. The card is written anew unless somebody has edited it.

    Args:
        path: The run folder.
        to: `hf://datasets/OWNER/NAME`, with `@BRANCH` for another branch than main.
        private: Whether a repository that is made is private.
        on_files: Called as files are uploaded.

    Returns:
        What was done.

    Raises:
        MidsightError: The run cannot be read, another one is there, the hub refuses, or what it then has differs.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    require_writable(path)  # a copy in the hub's cache has links in place of files
    run, address = open_run(path), parse_address(to)
    api = HfApi()
    with reporting_hub_errors(address, "what was uploaded stays, and the same command goes on from there"):
        api.create_repo(address.repository, repo_type="dataset", private=private, exist_ok=True)
        before = remote_files(api, address)
        _require_same_run(api, run, address, before)
        local = run_files(run)
        missing = [name for name, file in local.items() if not is_equal(file, before.get(name))]
        gone = [name for name in before if name.startswith(OF_RUN) and name not in local]
        card = _card(api, run, address, before)
        steps: list[list[CommitOperationAdd | CommitOperationDelete]] = [
            [CommitOperationAdd(name, str(local[name])) for name in names] for names in chunks(missing, FILES_IN_COMMIT)
        ]
        last = [] if card is None else [CommitOperationAdd(CARD, card)]
        last += [] if RUN_JSON not in missing else [CommitOperationAdd(RUN_JSON, str(local[RUN_JSON]))]
        steps.append([*(CommitOperationDelete(name) for name in gone), *last])
        done = len(local) - len(missing)
        for operations in steps:
            on_files(min(done, len(local)), len(local))
            if operations:
                api.create_commit(
                    address.repository,
                    operations,
                    commit_message=f"Run {run.spec.run_id}",
                    repo_type="dataset",
                    revision=address.revision,
                )
            done += len(operations)
        _compare(local, remote_files(api, address), address)
        on_files(len(local), len(local))
    return Pushed(address, len(missing), len(local) - len(missing), len(gone))


@dataclass(frozen=True)
class RemoteFile:
    """A file on the hub."""

    size: int
    """Its size in bytes."""
    sha256: str | None
    """Its SHA-256, as hexadecimal digits; None for a file in git itself."""
    blob: str
    """Git's name of its content."""


def remote_files(api: HfApi, address: HubAddress) -> dict[str, RemoteFile]:
    """The files of a repository by name."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(address.repository, recursive=True, repo_type="dataset", revision=address.revision)
    return {
        one.path: RemoteFile(one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
        for one in tree
        if isinstance(one, RepoFile)
    }


def run_files(run: Run) -> dict[str, Path]:
    """The files of a run by their names in the repository: run.json, commits, labels and findings, but no locks."""
    if not isinstance(run.path, Path):
        raise MidsightError(f"{run.path} is in a bucket; copy it to a folder, and push that.")
    files = [run.path / RUN_JSON]
    for commit in run.commits:
        suffixes = (".json", ".parquet") if commit.part else (".json",)
        files += [run.path / PARTS / f"{commit.name}{suffix}" for suffix in suffixes]
    for folder in OF_RUN[1:]:
        files += [file for file in sorted((run.path / folder).rglob("*")) if file.is_file() and not file.is_symlink()]
    return {file.relative_to(run.path).as_posix(): file for file in files}


def is_equal(file: Path, remote: RemoteFile | None) -> bool:
    """Whether the hub has the content of `file`."""
    if remote is None or remote.size != file.stat().st_size:
        return False
    if remote.sha256 is not None:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == remote.sha256
    content = file.read_bytes()
    named = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return named.hexdigest() == remote.blob


def chunks(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The names less run.json, a few at a time."""
    rest = [name for name in names if name != RUN_JSON]
    return (rest[start : start + size] for start in range(0, len(rest), size))


def _card(api: HfApi, run: Run, address: HubAddress, before: Mapping[str, RemoteFile]) -> bytes | None:
    """The dataset card; None if it is there already, or one that somebody has edited."""
    card = write_card(run, address)
    if CARD in before and RUN_JSON in before:
        there = _download(api, address, CARD).read_text(encoding="utf-8", errors="replace")
        if there == card or not is_unchanged(there):
            return None
    return card.encode()


def _download(api: HfApi, address: HubAddress, name: str) -> Path:
    """A file of the repository, in the hub's cache."""
    return Path(api.hf_hub_download(address.repository, name, repo_type="dataset", revision=address.revision))


def _require_same_run(api: HfApi, run: Run, address: HubAddress, before: Mapping[str, RemoteFile]) -> None:
    if RUN_JSON not in before:
        return
    run_id = json.loads(_download(api, address, RUN_JSON).read_bytes()).get("run_id")
    if run_id != run.spec.run_id:
        raise MidsightError(f"{address} holds another run ({run_id}), and this one is {run.spec.run_id}; choose "
                            "another repository, or another branch with @BRANCH.")  # fmt: skip


def _compare(local: Mapping[str, Path], there: Mapping[str, RemoteFile], address: HubAddress) -> None:
    """Raises MidsightError unless the hub has exactly what the run has."""
    wrong = [name for name, file in local.items() if not is_equal(file, there.get(name))]
    if wrong:
        raise MidsightError(f"After the upload {wrong[0]} in {address} is not what {local[wrong[0]]} holds; "
                            "the run may have changed meanwhile, so push it again.")  # fmt: skip
