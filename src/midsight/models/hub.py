"""A model's folder: one on disk, or downloaded from the hub at one pinned commit."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from midsight.errors import MidsightError, first_line
from midsight.models.headers import INDEX, ONLY_WEIGHTS, read_index

SNAPSHOT = re.compile(r"[0-9a-f]{40}")
TEXTS = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
)
"""Whatever a model is read from beside its weights; never Python, pickles or ONNX."""
LORA_FOLDER = "vision-lora"
"""The one folder inside a model's that is read."""
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What is read of it."""


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files are."""

    path: Path
    """The folder on disk."""
    revision: str | None
    """Commit of the hub, 40 hex digits; None for a plain folder."""


def find_model_folder(source: str | Path, *, revision: str | None = None) -> ModelFolder:
    """The folder of a model: `source` itself, or for a hub id like owner/name its files, downloaded.

    All files are of one commit, of `revision` or of the main branch. The hub's cache, HF_HUB_OFFLINE,
    HF_TOKEN and the rest work as huggingface_hub documents them. Raises MidsightError.
    """
    folder = Path(source)
    if is_folder(folder):
        if revision is not None:
            raise MidsightError(f"--revision {revision} goes with a hub id, and {source} is a folder; leave it out.")
        place = folder.resolve()
        is_snapshot = place.parent.name == "snapshots" and SNAPSHOT.fullmatch(place.name)
        return ModelFolder(folder, place.name if is_snapshot else None)
    if folder.exists():
        raise MidsightError(f"{source} is a file and no folder; give the folder of a model.")
    if not is_hub_id(str(source)):
        raise MidsightError(f"{source} is no folder, and no hub id like owner/name; give one of them.")
    path = download(str(source), revision)
    return ModelFolder(path, path.name)


def is_folder(source: str | Path) -> bool:
    """Whether it is one; raises MidsightError where that cannot be told, as of a name that is too long."""
    try:
        return Path(source).is_dir()
    except OSError as error:
        raise MidsightError(
            f"{source} cannot be read: {error.strerror or error}; give the folder of a model, or a hub id."
        ) from error


@contextmanager
def how_to_download_again(folder: Path) -> Iterator[None]:
    """Adds to an error that says to download again how, where the folder lies in the hub's cache.

    The same command alone would not: what is in the cache is not fetched again.
    """
    try:
        yield
    except MidsightError as error:
        place = folder.resolve()
        cached = re.fullmatch(r"models--(.+?)--(.+)", place.parent.parent.name)
        if cached is None or not SNAPSHOT.fullmatch(place.name):
            raise
        file = re.search(rf"{re.escape(str(folder))}/([\w./-]*[\w-])", str(error))
        names = " ".join(["/".join(cached.groups()), *(file.groups() if file else ())])
        command = f"`hf download {names} --revision {place.name} --force-download`"
        raise MidsightError(re.sub(r"(download \w+( folder)? again)", rf"\1 with {command}", str(error))) from error


def is_hub_id(source: str) -> bool:
    """Whether the hub could have a model of this name, owner and all."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return "/" in source


def download(hub_id: str, revision: str | None) -> Path:
    """The snapshot folder of a hub id with the files that midsight reads; raises MidsightError."""
    folder = fetch(hub_id, revision, allow=TEXTS, ignore="*/*")
    # The commit that the first call found: a branch that moves in between moves nothing here.
    fetch(hub_id, folder.name, allow=weight_patterns(read_index(folder)), ignore="*/*/*")
    return folder


def weight_patterns(index: Mapping[str, str] | None) -> list[str]:
    """Patterns of the weight files: those that the index names, and the LoRA's files unless its tensors are in them."""
    lora = [f"{LORA_FOLDER}/{name}" for name in LORA_FILES]
    if index is None:
        return [ONLY_WEIGHTS, *lora]
    named = [glob.escape(file) for file in sorted(set(index.values())) if re.fullmatch(r"[^/]+\.safetensors", file)]
    return named if any(".lora_" in tensor for tensor in index) else [*named, *lora]


def fetch(hub_id: str, revision: str | None, *, allow: list[str] | tuple[str, ...], ignore: str) -> Path:
    """The snapshot folder once the files that match are in it; those in the cache are not asked for again."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(allow), ignore_patterns=ignore))
    except Exception as error:  # the hub's client raises those of its HTTP library, which changes with its versions
        raise MidsightError(explain(hub_id, revision or "main", error)) from error


def explain(hub_id: str, revision: str, error: Exception) -> str:
    """Why a download failed and what to do, in one sentence."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    out_of_reach = isinstance(error, LocalEntryNotFoundError)  # and not in the cache: its cause says why
    cause = (error.__cause__ or error) if out_of_reach else error
    if isinstance(cause, GatedRepoError):
        return f"{hub_id} is gated; accept its terms on the hub, then `hf auth login` or set HF_TOKEN."
    if isinstance(cause, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision}; give a branch, tag or commit it has."
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"{hub_id} is no folder here and no model on the hub that you may read; check the name, "
            "or for a private one `hf auth login` or set HF_TOKEN."
        )
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{hub_id} at {revision} is not whole in the cache {HF_HUB_CACHE} and HF_HUB_OFFLINE is set; "
            "unset it for the download, or give a folder."
        )
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in {401, 403}:
            return f"The hub refuses you {hub_id} (status {status}); `hf auth login` anew or set another HF_TOKEN."
        return f"The hub answers {hub_id} with status {status}; try again later, or give a folder."
    reason = first_line(cause)
    if out_of_reach:
        return f"{hub_id} is not in the cache and the hub is out of reach ({reason}); connect, or give a folder."
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"The disk of the cache {HF_HUB_CACHE} is full; free space there, or set HF_HOME to another disk."
    return f"{hub_id} could not be downloaded whole ({reason}); the same command fetches the files that are missing."
