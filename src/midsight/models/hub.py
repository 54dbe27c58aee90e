"""A model's folder: one on disk, or downloaded from the hub at one pinned commit."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from midsight.errors import MidsightError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SNAPSHOT = re.compile(r"[0-9a-f]{40}")
FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""Files that are downloaded; never Python, pickles or ONNX."""
LORA_FOLDER = "vision-lora"
"""The one folder of the repository that is downloaded with them."""


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files are."""

    path: Path
    """The folder on disk."""
    revision: str | None
    """Commit of the hub, 40 hex digits; None for a plain folder."""


def find_model_folder(source: str | Path, *, revision: str | None = None) -> ModelFolder:
    """The folder of a model: `source` itself, or for a hub id like owner/name its files, downloaded.

    All files are of one commit, of `revision` or of the main branch. The hub's cache, HF_HUB_OFFLINE
    and resumed downloads work as huggingface_hub documents them. Raises MidsightError.
    """
    folder = Path(source)
    if folder.is_dir():
        if revision is not None:
            raise MidsightError(f"--revision {revision} goes with a hub id, and {source} is a folder; leave it out.")
        name = folder.resolve().name
        is_snapshot = folder.resolve().parent.name == "snapshots" and SNAPSHOT.fullmatch(name)
        return ModelFolder(folder, name if is_snapshot else None)
    if not HUB_ID.fullmatch(str(source)):
        raise MidsightError(f"{source} is no folder, and no hub id like owner/name; give one of them.")
    path = download(str(source), revision)
    return ModelFolder(path, path.name)


def download(hub_id: str, revision: str | None) -> Path:
    """The snapshot folder of a hub id with the files that midsight reads; raises MidsightError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(FILES), ignore_patterns="*/*"))
        inside = [f"{LORA_FOLDER}/{pattern}" for pattern in FILES]
        return Path(snapshot_download(hub_id, revision=path.name, allow_patterns=inside))
    except GatedRepoError:
        raise MidsightError(f"{hub_id} is gated; accept its terms on the hub, then `hf auth login`.") from None
    except RevisionNotFoundError:
        raise MidsightError(f"{hub_id} has no revision {revision}; give a branch, tag or commit it has.") from None
    except RepositoryNotFoundError:
        raise MidsightError(
            f"The hub has no {hub_id} that you may read; check the name, or `hf auth login` for a private one."
        ) from None
    except LocalEntryNotFoundError:
        raise MidsightError(
            f"{hub_id} is not in the cache and the hub is out of reach; connect, or give a folder."
        ) from None
    except Exception as error:  # the hub's client raises those of its HTTP library, which changes with its versions
        reason = str(error).partition("\n")[0]
        raise MidsightError(f"{hub_id} could not be downloaded ({reason}); the same command resumes it.") from error
