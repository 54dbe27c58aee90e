"""The file or folder that a user names: on a disk, in a bucket, or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from midsight.buckets.path import Place, to_place
from midsight.errors import MidsightError, first_line

HUB_PREFIX = "hf://"
_REPOSITORY = r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)"
_REVISION = r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^\s/@]+))?"
_FILE = re.compile(rf"{_REPOSITORY}{_REVISION}/(?P<file>[^/].*?)/?", re.DOTALL)


def find_place(named: Any) -> Place:
    """The file, folder or pattern with this name; one on the hub is downloaded into the hub's cache.

    Raises MidsightError for an address that is none, or that cannot be downloaded.
    """
    return _downloaded(str(named)) if str(named).startswith(HUB_PREFIX) else to_place(named)


def is_hub_file(named: object) -> bool:
    """Whether the name is `hf://datasets/OWNER/NAME[@REVISION]/FILE`, and not that of a whole dataset."""
    return _FILE.fullmatch(str(named)) is not None


def _downloaded(address: str) -> Path:
    """The file, folder or pattern in the hub's cache, at the commit that the revision names now."""
    match = _FILE.fullmatch(address)
    if match is None:
        raise MidsightError(f"{address} names no file or folder; write hf://datasets/OWNER/NAME[@REVISION]/FOLDER.")
    file = match["file"]
    parts = file.split("/")
    if not all(part and part not in (".", "..") for part in parts):
        raise MidsightError(f"{address} is not an address on the hub; leave out empty parts and dots.")
    try:
        folder = import_module("huggingface_hub").snapshot_download(
            match["repository"], repo_type="dataset", revision=match["revision"], allow_patterns=[file, f"{file}/*"]
        )
    except Exception as error:  # the hub's client passes on errors of its HTTP library, which differs between versions
        raise MidsightError(
            f"{address} cannot be downloaded: {first_line(error)}; check the name, the network, and HF_TOKEN if it is "
            "private."
        ) from error
    return Path(folder, *parts)
