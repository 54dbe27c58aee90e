"""Finding a model's folder: on disk, or on the hub, from which it is downloaded at one commit."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midsight.checkpoints.headers import INDEX, ONLY_WEIGHTS, read_index, read_json
from midsight.errors import MidsightError, ModelFileError, Option, first_line
from midsight.families.catalogue import FAMILIES, PUBLISHED_TYPES, find_family, find_known
from midsight.families.family_file import FamilyFile, require_architecture
from midsight.families.lora_folders import LORA_FOLDERS

SNAPSHOT = re.compile(r"[0-9a-f]{40}")
"""Name of a snapshot folder in the hub's cache: a commit."""
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
"""The files that are read in addition to the weights; never Python, pickles or ONNX."""
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files that are read from a LoRA's folder."""
OTHER_WEIGHTS = re.compile(r"non_lora_\w+\.bin")
"""Where scripts derived from LLaVA's store what they trained beside a LoRA: non_lora_state_dict.bin and the like."""
VOCABULARY = ("vocab.json", "merges.txt")
"""The files that are read in place of a tokenizer.json."""


@dataclass(frozen=True)
class ModelFolder:
    """Where a model's files are."""

    path: Path
    """The folder on disk."""
    revision: str | None
    """Commit on the hub, 40 hex digits; None for a plain folder."""


def find_model_folder(
    source: str | Path,
    *,
    revision: str | None = None,
    option: str = "revision",
    family_file: FamilyFile | None = None,
) -> ModelFolder:
    """The folder of a model: `source` itself, or the downloaded files of a hub id like owner/name.

    All files are of one commit: that of `revision`, which the user gave as `option`, or of the main branch. The hub's
    cache, HF_HUB_OFFLINE, HF_TOKEN and the other settings work as huggingface_hub documents them. `family_file`
    declares a family that the catalogue may not have. Raises MidsightError.
    """
    folder = Path(source)
    if is_folder(folder):
        if revision is not None:
            raise MidsightError(
                Option(option, revision), f" goes with a hub id, and {source} is a folder; leave it out."
            )
        resolved = folder.resolve()
        is_snapshot = resolved.parent.name == "snapshots" and SNAPSHOT.fullmatch(resolved.name)
        return ModelFolder(folder, resolved.name if is_snapshot else None)
    if folder.exists():
        raise MidsightError(f"{source} is a file, not a folder; give the folder of a model.")
    if not is_hub_id(str(source)):
        raise MidsightError(f"{source} is neither a folder nor a hub id like owner/name; give one of them.")
    path = download(str(source), revision, family_file)
    return ModelFolder(path, path.name)


def is_folder(source: str | Path) -> bool:
    """Whether `source` is a folder; raises MidsightError if the system cannot say, as for a name that is too long."""
    try:
        return Path(source).is_dir()
    except OSError as error:
        raise MidsightError(
            f"{source} cannot be read: {error.strerror or error}; give the folder of a model, or a hub id."
        ) from error


def find_small_files(source: str | Path, *, revision: str | None = None) -> ModelFolder:
    """The folder of a model of any family; of a hub id it has all that midsight reads but weights.

    Raises MidsightError.
    """
    if is_folder(source) or not is_hub_id(str(source)):
        return find_model_folder(source, revision=revision)
    path = fetch(str(source), revision, allow=TEXTS, ignore="*/*")
    return ModelFolder(path, path.name)


@contextmanager
def how_to_download_again(folder: Path) -> Iterator[None]:
    """Adds to a ModelFileError the command that downloads the file again, if the folder is in the hub's cache.

    Repeating the midsight command would not help: huggingface_hub does not fetch a file again that is in its cache.
    """
    try:
        yield
    except ModelFileError as error:
        resolved = folder.resolve()
        cached = re.fullmatch(r"models--(.+?)--(.+)", resolved.parent.parent.name)
        if cached is None or not SNAPSHOT.fullmatch(resolved.name):
            raise
        names = " ".join(["/".join(cached.groups()), *name_in_folder(error.path, folder)])
        command = f"hf download {names} --revision {resolved.name} --force-download"
        raise ModelFileError(error.problem, error.path, command=command) from error


def name_in_folder(path: Path | None, folder: Path) -> list[str]:
    """A file's name on the hub, in a list; an empty list if `path` is None or not in the folder.

    A relative path that does not begin with the folder starts inside it, like `config.json`.
    """
    if path is None or (path.is_absolute() and not path.is_relative_to(folder)):
        return []
    return [(path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()]


def is_hub_id(source: str) -> bool:
    """Whether this is a name that a model on the hub can have, its owner included."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return "/" in source


def download(hub_id: str, revision: str | None, family_file: FamilyFile | None = None) -> Path:
    """Downloads the files that midsight reads, and returns the snapshot folder; raises MidsightError."""
    folder = fetch(hub_id, revision, allow=TEXTS, ignore="*/*")
    refuse_unknown_family(folder, hub_id, family_file)
    with how_to_download_again(folder):
        weights = weight_patterns(read_index(folder), lora_folder(folder))
    vocabulary = () if (folder / "tokenizer.json").exists() else VOCABULARY
    has_adapter = (folder / LORA_FILES[0]).exists()
    if has_adapter:
        require_only_lora(hub_id, hub_files(hub_id, folder.name))
    patterns = (*weights, *vocabulary, *(LORA_FILES if has_adapter else ()))
    # at the commit that the first call found, because the branch may move in between
    fetch(hub_id, folder.name, allow=patterns, ignore="*/*/*")
    return folder


def is_adapter(folder: Path) -> bool:
    """Whether a folder has an adapter and no model's weights; some trainers put the base model's config.json there."""
    return (folder / LORA_FILES[0]).exists() and not any((folder / name).exists() for name in (ONLY_WEIGHTS, INDEX))


def require_only_lora(source: str | Path, files: Iterable[str]) -> None:
    """Raises MidsightError if one of an adapter's files has trained weights that are not in its LoRA."""
    others = sorted(name for name in files if OTHER_WEIGHTS.fullmatch(name))
    if others:
        raise MidsightError(
            f"{source} has {others[0]}, trained weights beside the LoRA in a pickle, which midsight does not open; "
            "merge both into the model with the script that trained them, and give the merged model."
        )


def refuse_unknown_family(folder: Path, hub_id: str, family_file: FamilyFile | None) -> None:
    """Raises MidsightError if config.json names a family that cannot be loaded here, by the catalogue or `family_file`.

    It does so before weights are downloaded. What a config.json lacks, or that it cannot be read, is said when the
    folder is opened.
    """
    try:
        named, config = read_architectures(folder), read_json(folder / "config.json")
    except MidsightError:
        return
    if named and family_file is not None:
        require_architecture(family_file, named, hub_id)
    elif named and config.get("model_type") not in PUBLISHED_TYPES:
        from midsight.families.family import require_packages  # imports torch

        find_known(named, hub_id)
        require_packages(find_family(named, config, hub_id))


def require_known_family(folder: Path, source: str) -> None:
    """Raises MidsightError if config.json names classes of transformers, and none that midsight knows.

    Imports no torch. What else may be wrong with a config.json is said when the folder is opened.
    """
    try:
        config = read_json(folder / "config.json")
    except MidsightError:
        return
    named = config.get("architectures")
    if isinstance(named, list) and named and config.get("model_type") not in PUBLISHED_TYPES and not has_code(config):
        find_known([*map(str, named)], source)


def has_code(config: Mapping[str, Any]) -> bool:
    """Whether a config.json names Python code of the folder's own, which midsight never runs."""
    return bool(config.get("auto_map"))


def lora_folder(folder: Path) -> str | None:
    """Name of the folder for a LoRA for images, by the family that config.json names; None if the family has none.

    A config.json that cannot be read names no family; its error is raised when the folder is opened.
    """
    try:
        known = [name for name in read_architectures(folder) if name in FAMILIES]
    except MidsightError:
        return None
    return LORA_FOLDERS.get(known[0]) if known else None


def read_architectures(folder: Path) -> list[str]:
    """`architectures` of the folder's config.json; if it has none, those that transformers has for its model type.

    Empty if the field is not a list of names.
    """
    config = read_json(folder / "config.json")
    architectures = config.get("architectures")
    if architectures in (None, []):
        # takes seconds to import, and most folders name their class
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_CLASSES
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT_CLASSES,
        )

        named = (names.get(str(config.get("model_type"))) for names in (IMAGE_TEXT_CLASSES, CAUSAL_CLASSES))
        return [name for name in named if isinstance(name, str)]
    return [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []


def weight_patterns(index: Mapping[str, str] | None, lora: str | None) -> list[str]:
    """Patterns of the weight files: those that the index names, and those of the LoRA folder `lora`."""
    lora_files = [f"{lora}/{name}" for name in LORA_FILES] if lora is not None else []
    if index is None:
        return [ONLY_WEIGHTS, *lora_files]
    named = [glob.escape(file) for file in sorted(set(index.values())) if re.fullmatch(r"[^/]+\.safetensors", file)]
    return [*named, *lora_files]


def fetch(hub_id: str, revision: str | None, *, allow: list[str] | tuple[str, ...], ignore: str) -> Path:
    """Downloads the files that match, unless they are in the cache, and returns the snapshot folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(allow), ignore_patterns=ignore))
    except Exception as error:  # the hub's client passes on errors of its HTTP library, which differs between versions
        raise MidsightError(explain(hub_id, revision or "main", error)) from error


def hub_files(hub_id: str, commit: str) -> list[str]:
    """Names of a repository's files; none if the hub cannot be reached, and what is in the cache has to do."""
    from huggingface_hub import HfApi

    try:
        siblings = HfApi().model_info(hub_id, revision=commit).siblings
    except Exception:  # as in fetch; if files are missing in the cache, fetch says why
        return []
    return [sibling.rfilename for sibling in siblings or ()]


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

    out_of_reach = isinstance(error, LocalEntryNotFoundError)  # nor in the cache; the error's cause says why
    cause = (error.__cause__ or error) if out_of_reach else error
    if isinstance(cause, GatedRepoError):
        return f"{hub_id} is gated; accept its terms on the hub, then run `hf auth login` or set HF_TOKEN."
    if isinstance(cause, RevisionNotFoundError):
        return f"{hub_id} has no revision {revision}; give a branch, tag or commit that it has."
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"{hub_id} is neither a folder here nor a model on the hub that you may read; check the name, "
            "or for a private model run `hf auth login` or set HF_TOKEN."
        )
    if isinstance(cause, OfflineModeIsEnabled):
        return (
            f"{hub_id} at {revision} is not complete in the cache {HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; "
            "unset it to download the model, or give a folder."
        )
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in {401, 403}:
            return (
                f"The hub refuses access to {hub_id} (status {status}); run `hf auth login` again, or set another "
                "HF_TOKEN."
            )
        return f"The hub answers the request for {hub_id} with status {status}; try again later, or give a folder."
    reason = first_line(cause)
    if out_of_reach:
        return (
            f"{hub_id} is not in the cache, and the hub cannot be reached ({reason}); connect to it, or give a folder."
        )
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return f"The disk of the cache {HF_HUB_CACHE} is full; free space there, or set HF_HOME to another disk."
    return f"{hub_id} could not be downloaded completely ({reason}); run the same command to fetch the missing files."
