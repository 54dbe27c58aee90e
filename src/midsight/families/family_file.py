"""A family in a file of the user's own, and the proof that lies beside it.

The file is Python that the user wrote or `midsight adapter` did, and that the user names; none is ever taken from a
model folder. Its proof is FILE.proof.json: it holds for this content of the file, these versions, and models whose
config differs from the proved one in sizes only.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from midsight.errors import MidsightError, Option, first_line
from midsight.version import __version__

if TYPE_CHECKING:
    from midsight.families.family import Family

NO_SETTINGS = frozenset(
    (
        "_name_or_path", "architectures", "auto_map", "dtype", "id2label", "label2id", "name_or_path", "return_dict",
        "torch_dtype", "transformers_version", "use_cache",
    )
)  # fmt: skip
"""Fields of a config that do not decide what is computed with a tensor."""


@dataclass(frozen=True)
class ProofRecord:
    """What FILE.proof.json holds."""

    architecture: str
    """The class that was proved."""
    sha256: str
    """SHA-256 of the family file, hex."""
    settings: Mapping[str, Any]
    """What the config of the proved model says, apart from sizes."""
    versions: Mapping[str, str]
    """Versions of the packages that computed the numbers."""
    checks: Sequence[Mapping[str, Any]]
    """What was compared, with figures and limits; every one passed."""


@dataclass(frozen=True)
class FamilyFile:
    """A family that a user's file declares."""

    path: Path
    """The file, as the user named it."""
    sha256: str
    """SHA-256 of its content, hex."""
    family: Family
    """Its FAMILY."""
    proof: ProofRecord | None = None
    """The proof beside it; None while it is being proved."""


def installed_versions() -> dict[str, str]:
    """Versions of the packages by which a proof may lose its truth."""
    return {"midsight": __version__, "transformers": version("transformers")}


def proof_path(path: Path) -> Path:
    """Where the proof of a family file is."""
    return path.with_name(f"{path.stem}.proof.json")


def read_content(path: Path, option: str = "family") -> bytes:
    """The bytes of a family file; raises MidsightError, which names the argument `option`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MidsightError(
            Option(option, str(path)), f" cannot be read ({error.strerror or error}); give a family file."
        ) from error


def read_family_file(path: str | Path, option: str = "family") -> FamilyFile:
    """Runs a file and takes its FAMILY, proved or not; raises MidsightError, which names the argument `option`."""
    from midsight.families.family import Family  # imports torch

    path, named = Path(path), Option(option, str(path))
    content = read_content(path, option)
    sha256 = hashlib.sha256(content).hexdigest()
    module = ModuleType(f"midsight_family_{sha256}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look for their module there
    try:
        exec(compile(content, str(path), "exec"), vars(module))  # noqa: S102  (the user's own file, named in the call)
    except Exception as error:  # it may raise anything
        raise MidsightError(
            named, f" does not run ({type(error).__name__}: {first_line(error)}); correct it."
        ) from error
    family = getattr(module, "FAMILY", None)
    if not isinstance(family, Family):
        raise MidsightError(
            named,
            " has no FAMILY that is a Family; end it with one, as the page 'Adding a model' of midsight's "
            "documentation shows.",
        )
    return FamilyFile(path, sha256, family)


def read_proved_file(path: str | Path) -> FamilyFile:
    """A family file whose proof lies beside it and is of its content and of these versions; raises MidsightError."""
    file, record = read_family_file(path), read_proof(Path(path))
    if record.sha256 != file.sha256 or record.architecture != file.family.architecture:
        raise not_proved(file.path, "was changed after its proof")
    return replace(file, proof=record)


def read_proof(path: Path) -> ProofRecord:
    """The proof beside a family file, which is of its content and of these versions: the file is not run.

    Raises MidsightError if there is no such proof.
    """
    sha256, record = hashlib.sha256(read_content(path)).hexdigest(), read_record(path)
    if record.sha256 != sha256:
        raise not_proved(path, "was changed after its proof")
    for package, now in installed_versions().items():
        if record.versions.get(package) != now:
            before = record.versions.get(package, "an unknown version")
            raise not_proved(path, f"was proved with {package} {before}, and this is {package} {now}")
    return record


def read_record(file: Path) -> ProofRecord:
    """What the proof beside a family file holds; raises MidsightError if there is none."""
    path = proof_path(file)
    try:
        record = ProofRecord(**json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(record.settings, dict) or not isinstance(record.versions, dict):
            raise ValueError("settings and versions are not objects")
        return record
    except FileNotFoundError:
        raise not_proved(file, f"has no proof beside it ({path.name})") from None
    except (OSError, ValueError, TypeError) as error:
        raise not_proved(file, f"has a proof that cannot be read ({first_line(error)})") from error


def write_record(file: FamilyFile, config: Any, checks: Sequence[Mapping[str, Any]]) -> Path:
    """Writes the proof beside the file that it is of, and returns its path; `config` is the proved model's."""
    record = ProofRecord(file.family.architecture, file.sha256, settings_of(config), installed_versions(), [*checks])
    path = proof_path(file.path)
    path.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")
    return path


def not_proved(file: Path, why: str) -> MidsightError:
    """The error for a family file from which nothing is extracted."""
    return MidsightError(Option("family", str(file)), f" {why}; prove it with `midsight adapter MODEL --prove {file}`.")


def require_proved_for(file: FamilyFile, config: Any, source: str) -> None:
    """Raises MidsightError if the proof is of a model whose config, apart from sizes, says something else."""
    if file.proof is None:
        return
    before, now = file.proof.settings, settings_of(config)
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise not_proved(
                file.path,
                f"was proved for a model whose config has {name} {before.get(name)!r}, and {source} has "
                f"{now.get(name)!r}",
            )


def require_architecture(file: FamilyFile, architectures: Sequence[str], source: str, option: str = "family") -> None:
    """Raises MidsightError if a family file is not for a model of these architectures."""
    if file.family.architecture not in architectures:
        raise MidsightError(
            Option(option, str(file.path)),
            f" is for {file.family.architecture}, and {source} has the architecture "
            f"{', '.join(architectures) or 'none'}; give the file of that one.",
        )


def settings_of(config: Any) -> dict[str, Any]:
    """What a config says in words, yes and no, and places counted from the end; its sizes are left out."""
    return dict(sorted(_settings(config.to_dict(), "")))


def _settings(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inside in value.items():
            if key not in NO_SETTINGS:
                yield from _settings(inside, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if any(_is_setting(one) for one in value):
            yield name, sorted({str(one) for one in value})
    elif _is_setting(value):
        yield name, value


def _is_setting(value: Any) -> bool:
    return isinstance(value, bool | str) or (isinstance(value, int) and value < 0)
