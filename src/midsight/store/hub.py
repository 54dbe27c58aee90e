"""Runs on the hub, at `hf://datasets/OWNER/NAME`, with `@REVISION` if it is not the main branch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from midsight.buckets.path import Place, to_place
from midsight.errors import MidsightError, first_line
from midsight.store.files import PARTS, RUN_JSON

PREFIX = "hf://"
FILES = (f"{PARTS}/*", "annotations/*", "findings/**")
"""The files of a run beside run.json."""
_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^@\s]+))?/?")
_INSIDE = re.compile(r"(hf://datasets/[^/]+/[^/@]+(?:@[^@\s]+?)?)/(findings/[\w-]+(?:/probe)?)/?")
_REPOSITORY = "datasets--"
"""How the folder of a dataset repository begins in the hub's cache."""


@dataclass(frozen=True)
class HubAddress:
    """A dataset repository."""

    repository: str
    """OWNER/NAME."""
    revision: str | None
    """Branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        return f"hf://datasets/{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(text: object) -> TypeGuard[str]:
    """Whether `text` is meant as an address on the hub."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """The address that `text` spells; raises MidsightError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise MidsightError(f"{text} is no place for a run; write hf://datasets/OWNER/NAME.")
    return HubAddress(match[1], match[2])


def require_writable(run: str | Place) -> None:
    """Raises MidsightError for a run on the hub, or for its copy in the hub's cache, which are only read."""
    address = parse_address(run) if is_hub_address(run) else address_of_copy(run)
    if address is not None:
        revision = f"--revision {address.revision} " if address.revision else ""
        raise MidsightError(
            f"{address} is on the hub, where a run is only read; download it with `hf download {address.repository} "
            f"--repo-type dataset {revision}--local-dir FOLDER`, work on that folder, and `midsight push` it."
        )


def address_of_copy(run: str | Place) -> HubAddress | None:
    """The address, with its commit, of a run in the hub's cache; None if the folder is another one."""
    folder = to_place(run).absolute()
    if not isinstance(folder, Path) or folder.parent.name != "snapshots":
        return None
    repository = folder.parents[1].name
    if not repository.startswith(_REPOSITORY):
        return None
    return HubAddress(repository.removeprefix(_REPOSITORY).replace("--", "/", 1), folder.name)


def shown_place(run: Place) -> str:
    """The folder of a run, or its address if it is in the hub's cache."""
    return str(address_of_copy(run) or run)


def download_finding(text: str) -> Path:
    """The folder in the hub's cache of a finding or its probe, at `hf://datasets/OWNER/NAME/findings/FINDING/probe`.

    Raises MidsightError if the hub refuses, or has no run there.
    """
    match = _INSIDE.fullmatch(text)
    if match is None:
        raise MidsightError(f"{text} is no place for a probe; write hf://datasets/OWNER/NAME/findings/FINDING/probe.")
    return download_run(parse_address(match[1]), ("findings/**",)) / match[2]


def download_run(address: HubAddress, wanted: Sequence[str] = FILES) -> Path:
    """The folder in the hub's cache with the `wanted` files of a run and its run.json, all of one commit.

    Raises MidsightError if the hub refuses, or has no run there.
    """
    from huggingface_hub import snapshot_download

    with reporting_hub_errors(address, "check the name, the network, and HF_TOKEN if it is private"):
        folder = snapshot_download(
            address.repository,
            repo_type="dataset",
            revision=address.revision,
            allow_patterns=[RUN_JSON, *wanted],
        )
    if not (Path(folder) / RUN_JSON).is_file():
        raise MidsightError(f"{address} holds no run, because it has no {RUN_JSON}; if an upload broke off, repeat it.")
    return Path(folder)


@contextmanager
def reporting_hub_errors(address: HubAddress, then: str) -> Iterator[None]:
    """Turns what the hub refuses into one sentence, which ends with what to do then."""
    try:
        yield
    except MidsightError:
        raise
    except Exception as error:  # the hub's client passes on errors of its HTTP library, which differs between versions
        raise MidsightError(f"{address} cannot be reached: {first_line(error)}; {then}.") from error
