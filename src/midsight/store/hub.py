"""Runs on the hub, at `hf://datasets/OWNER/NAME`, with `@REVISION` if it is not the main branch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midsight.errors import MidsightError, first_line
from midsight.store.files import PARTS, RUN_JSON

PREFIX = "hf://"
_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+?)(?:@([^@\s]+))?/?")


@dataclass(frozen=True)
class HubAddress:
    """A dataset repository."""

    repository: str
    """OWNER/NAME."""
    revision: str | None
    """Branch, tag or commit; None for the main branch."""

    def __str__(self) -> str:
        return f"hf://datasets/{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(text: object) -> bool:
    """Whether `text` is meant as an address on the hub."""
    return isinstance(text, str) and text.startswith(PREFIX)


def parse_address(text: str) -> HubAddress:
    """The address that `text` spells; raises MidsightError."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise MidsightError(f"{text} is no place for a run; write hf://datasets/OWNER/NAME.")
    return HubAddress(match[1], match[2])


def require_writable(text: str) -> None:
    """Raises MidsightError for the address of a run on the hub, which is only read."""
    if is_hub_address(text):
        raise MidsightError(
            f"{text} is on the hub, where a run is only read; download it, change the copy, and `midsight push` that."
        )


def download_run(address: HubAddress) -> Path:
    """The folder in the hub's cache with the files of a run, all of one commit.

    Raises MidsightError if the hub refuses, or has no run there.
    """
    from huggingface_hub import snapshot_download

    with reporting_hub_errors(address, "check the name, the network, and HF_TOKEN if it is private"):
        folder = snapshot_download(
            address.repository,
            repo_type="dataset",
            revision=address.revision,
            allow_patterns=[RUN_JSON, f"{PARTS}/*", "annotations/*", "findings/**"],
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
