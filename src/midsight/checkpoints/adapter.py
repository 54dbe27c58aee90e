"""An adapter's folder given as the model: its base model is found, and its LoRA is read."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from midsight.checkpoints.fingerprint import fingerprint
from midsight.checkpoints.headers import Headers, read_header, read_headers
from midsight.checkpoints.hub import (
    LORA_FILES,
    ModelFolder,
    find_model_folder,
    how_to_download_again,
    is_adapter,
    is_folder,
    is_hub_id,
    lora_folder,
)
from midsight.checkpoints.peft_folder import CONFIG, PeftFolder, read_peft_folder
from midsight.errors import MidsightError, Option

if TYPE_CHECKING:
    from midsight.families.family_file import FamilyFile


@dataclass(frozen=True)
class AdapterOrigin:
    """Where base model and adapter come from."""

    base: str
    """Folder or hub id of the base model."""
    base_revision: str | None
    """Its commit on the hub; None for a plain folder."""
    base_fingerprint: str
    """SHA-256 of the base model's files, hex."""
    adapter_fingerprint: str
    """SHA-256 of the adapter's files, hex."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of both, hex."""
        return hashlib.sha256(f"{self.base_fingerprint} {self.adapter_fingerprint}".encode()).hexdigest()


@dataclass(frozen=True)
class FoundModel:
    """The folders of a model: one, or those of a base model and an adapter."""

    folder: ModelFolder
    """The model's folder, or the base model's."""
    name: str
    """Folder or hub id of it, as it was named."""
    adapter: PeftFolder | None = None
    """The adapter; None for a whole model."""
    revision: str | None = None
    """Commit of what the user named: the model, or the adapter."""

    def origin(self, headers: Headers) -> AdapterOrigin | None:
        """Where base and adapter come from; None without an adapter. `headers` are the base model's."""
        if self.adapter is None:
            return None
        return AdapterOrigin(
            self.name,
            self.folder.revision,
            fingerprint(self.folder.path, headers),
            fingerprint(self.adapter.path, self.adapter.headers),
        )


def find_model(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
    family_file: FamilyFile | None = None,
) -> FoundModel:
    """The folders of the model that the user named; a base model that is not named is the one that the adapter names.

    `family_file` declares a family that the catalogue may not have. Raises MidsightError.
    """
    found = find_model_folder(source, revision=revision, family_file=family_file)
    if not is_adapter(found.path):
        for option in (Option("base", base and str(base)), Option("base_revision", base_revision)):
            if option.value is not None:
                raise MidsightError(
                    option, f" goes with an adapter's folder, and {source} has no {CONFIG}; leave it out."
                )
        return FoundModel(found, str(source), revision=found.revision)
    with how_to_download_again(found.path):
        adapter = read_peft_folder(found.path)
    name, named_revision = (str(base), None) if base is not None else named_base(adapter, str(source))
    try:
        folder = find_model_folder(
            name, revision=base_revision or named_revision, option="base_revision", family_file=family_file
        )
    except MidsightError as error:
        if base is not None:
            raise
        raise MidsightError(
            f"{source} is an adapter; give ",
            Option("base"),
            " the folder or hub id of its base model, because the one that it names failed: ",
            *error.args,
        ) from error
    if is_adapter(folder.path):
        raise MidsightError(
            f"{name}, the base model of {source}, is an adapter itself; merge the two, or give ",
            Option("base"),
            " a whole model.",
        )
    return FoundModel(folder, name, adapter, found.revision)


def find_fingerprint(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
) -> str | None:
    """The fingerprint that the model has when it is opened, from its files alone: torch is not imported.

    None if the files are not whole, which is said when the model is opened. Raises MidsightError if there is no model.
    """
    found = find_model(source, revision=revision, base=base, base_revision=base_revision)
    folder = found.folder.path
    try:
        headers = {**read_headers(folder), **read_image_lora(folder)}
    except MidsightError:
        return None
    origin = found.origin(headers)
    return origin.fingerprint if origin else fingerprint(folder, headers)


def read_image_lora(folder: Path) -> Headers:
    """Headers of the LoRA for images in the folder that the family names; empty without one. Raises MidsightError."""
    name = lora_folder(folder)
    path = folder / (name or "") / LORA_FILES[1]
    return read_header(path) if name and path.is_file() else {}


def named_base(adapter: PeftFolder, source: str) -> tuple[str, str | None]:
    """The base model that the adapter names, and its revision if it is one on the hub; raises MidsightError."""
    name, revision = (adapter.config.get(key) for key in ("base_model_name_or_path", "revision"))
    if not isinstance(name, str) or not name:
        raise MidsightError(
            f"{source} is an adapter and names no base model; give ", Option("base"), " its folder or hub id."
        )
    if is_folder(name):
        return name, None
    if not is_hub_id(name):
        raise MidsightError(
            f"{source} is an adapter of {name}, which is not a folder here; give ",
            Option("base"),
            " the folder or hub id of that model.",
        )
    return name, revision if isinstance(revision, str) else None
