"""What a folder of HDF5 parts holds, found out before anything is written: samples, script, columns, damage."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from midsight.errors import MidsightError, Option, first_line
from midsight.halp.layout import (
    BEFORE_NORM,
    LAST_LAYER,
    LAYERS,
    RUN_ID,
    VERSION,
    VISION_ONLY_IS,
    part_order,
    sample_id_of,
)
from midsight.halp.reading import (
    HDF5_ERRORS,
    UnreadableError,
    VectorKey,
    has_answer,
    open_part,
    read_attributes,
    sample_names,
    vector_widths,
)
from midsight.halp.scripts import (
    ENCODER_MEAN,
    LAST_IMAGE_TOKEN,
    LAST_PROMPT_TOKEN,
    PIXELS,
    POSITIONS,
    SCRIPTS,
    Quantity,
    Script,
    recognise,
)
from midsight.records import VISION_ONLY

SUFFIXES = (".h5", ".hdf5")
UNKNOWN_MAKER = "an unknown one"
MOST_KINDS = 30
"""Kinds of problems with samples that are told apart."""


@dataclass
class Notes:
    """What is to be said about samples, each kind once, with the first sample as an example."""

    first: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, sample_id: str) -> None:
        """Says `what` about a sample; beyond the first kinds, only that there is more."""
        if what not in self.first and len(self.first) >= MOST_KINDS:
            what = "something else is not as the format has it"
        self.first.setdefault(what, sample_id)
        self.counts[what] += 1

    def sentences(self) -> list[str]:
        """One sentence for each kind."""
        return [
            f"In {count:,} {'sample' if count == 1 else 'samples'} ({self.first[what]}{', ...' if count > 1 else ''}), "
            f"{what}."
            for what, count in self.counts.items()
        ]


@dataclass(frozen=True)
class PartSurvey:
    """One readable file."""

    path: Path
    """The file."""
    attributes: Mapping[str, str]
    """What it says about itself."""
    names: Sequence[str]
    """The groups of its samples, in order."""


@dataclass(frozen=True)
class Survey:
    """A folder of parts."""

    folder: Path
    """The folder."""
    parts: tuple[PartSurvey, ...]
    """The files that can be read, in order."""
    script_name: str
    """Which script wrote them: a key of SCRIPTS, or `midsight`."""
    script: Script
    """What it stores."""
    widths: Mapping[VectorKey, int]
    """The commonest width of each dataset of vectors, in the order of the run's columns."""
    layers: int
    """Decoder layers of the model."""
    sha256: str
    """Hash of the files."""
    samples: int
    """Different ids."""
    answers: bool
    """Whether any sample has an answer."""
    problems: tuple[str, ...]
    """Files that cannot be used, and what else is wrong with them, one sentence each."""

    @property
    def attributes(self) -> Mapping[str, str]:
        """What the first file says about itself."""
        return self.parts[0].attributes

    @property
    def by_midsight(self) -> bool:
        """Whether midsight wrote the files."""
        return VERSION in self.attributes


def survey_parts(folder: Path, script: str | None = None) -> Survey:
    """Looks at every file and every sample of a folder, without reading vectors.

    Args:
        folder: The folder.
        script: The script that wrote the files; None to find it out.

    Returns:
        What is there.

    Raises:
        MidsightError: There is nothing to import, or the script cannot be told.
    """
    if script is not None and script not in SCRIPTS:
        raise MidsightError(Option("script", script), f" is unknown; choose from {', '.join(SCRIPTS)}.")
    files = _files(folder)
    looked = _look(files)
    parts, problems, widths = looked.parts, looked.problems, looked.widths
    if not widths:
        more = f" {problems[0]}" if problems else ""
        raise MidsightError(f"{folder} holds no vectors that can be imported.{more}")
    name, found = _script(folder, parts, widths, script)
    commonest = {
        key: counts.most_common(1)[0][0] for key, counts in sorted(widths.items(), key=lambda one: _rank(one[0]))
    }
    return Survey(
        folder=folder,
        parts=tuple(parts),
        script_name=name,
        script=found,
        widths=commonest,
        layers=_layer_count(parts[0].attributes, widths),
        sha256=_digest(files),
        samples=len(looked.owners),
        answers=looked.answers,
        problems=tuple(problems),
    )


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise MidsightError(f"{folder} is not a folder; give the folder of the HDF5 parts.")
    files = [path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
    if not files:
        raise MidsightError(f"{folder} holds no .h5 files; give the folder of the HDF5 parts.")
    return sorted(files, key=lambda path: part_order(path.name))


@dataclass
class _Looked:
    """What the files hold, as far as they were looked at."""

    parts: list[PartSurvey] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    widths: dict[VectorKey, Counter[int]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """Id -> the file that has it first."""
    answers: bool = False

    def add_sample(self, file: Any, name: str) -> None:
        self.answers = self.answers or has_answer(file, name)
        try:
            found = vector_widths(file, name)
        except UnreadableError:
            return
        for key, width in found.items():
            self.widths.setdefault(key, Counter())[width] += 1


def _look(files: Sequence[Path]) -> _Looked:
    looked, repeated = _Looked(), Notes()
    for path in files:
        try:
            with open_part(path) as file:
                attributes = read_attributes(file)
                names = sample_names(file, by_midsight=VERSION in attributes)
                for name in names:
                    looked.add_sample(file, name)
        except (UnreadableError, *HDF5_ERRORS) as error:
            looked.problems.append(f"The file {path} is left out: {first_line(error)}.")
            continue
        looked.problems += _count_problems(path, attributes, len(names))
        for name in names:
            first = looked.owners.setdefault(sample_id_of(name, attributes), path.name)
            if first != path.name:
                repeated.add(f"the id is in {first} and again in {path.name}, and the first one is kept", name)
        looked.parts.append(PartSurvey(path, attributes, names))
    looked.problems += repeated.sentences()
    return looked


def _count_problems(path: Path, attributes: Mapping[str, str], count: int) -> list[str]:
    if not count:
        return [f"The file {path} holds no samples."]
    said = attributes.get("num_samples", str(count))
    return [] if said == str(count) else [f"The file {path} says that it has {said} samples, and it has {count}."]


def _script(
    folder: Path, parts: Sequence[PartSurvey], widths: Mapping[VectorKey, Counter[int]], given: str | None
) -> tuple[str, Script]:
    """The script that wrote all parts; raises MidsightError if there are two or if it cannot be told."""
    layers = {key[1] for key in widths if key[1] is not None}
    found: dict[str, str] = {}
    for part in parts:
        own = VERSION in part.attributes
        name = (
            f"midsight, run {part.attributes.get(RUN_ID)}"
            if own
            else recognise(part.attributes, part.path.name, layers)
        )
        if name is None and part.names and given is None:
            name = UNKNOWN_MAKER
        if name is not None:
            found.setdefault(name, part.path.name)
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise MidsightError(
            f"{folder} holds files of several makers: {one} is of {first}, {other} of {second}; give each a folder of "
            "its own."
        )
    if VERSION in parts[0].attributes:
        if given is not None:
            raise MidsightError(f"midsight wrote the files of {folder}; leave out ", Option("script", given), ".")
        return "midsight", own_script(parts[0].attributes)
    name = given or next(iter(found), None)
    if name is None or name not in SCRIPTS:
        raise MidsightError(
            f"The files of {folder} do not say which script wrote them, so it is not known what they hold; name it "
            "with ", Option("script"), f": {', '.join(SCRIPTS)} (other claims nothing).",
        )  # fmt: skip
    return name, SCRIPTS[name]


def own_script(attributes: Mapping[str, str]) -> Script:
    """What a part by midsight stores, as its attributes say."""
    vision = {"encoder": ENCODER_MEAN, "pixels": PIXELS}.get(attributes.get(VISION_ONLY_IS, ""))
    return Script(
        model=attributes.get("model_type", "unknown"),
        layers="raw" if attributes.get(LAST_LAYER) == BEFORE_NORM else "normed",
        vision_only=vision or Quantity(None, "what the attribute does not say"),
        vision_token=LAST_IMAGE_TOKEN,
        query_token=LAST_PROMPT_TOKEN,
        max_new_tokens=None,
    )


def _layer_count(attributes: Mapping[str, str], widths: Mapping[VectorKey, Counter[int]]) -> int:
    """The decoder's layers: as midsight's parts say, else the highest one that is stored, which is the last."""
    highest = max((key[1] for key in widths if key[1] is not None), default=0)
    said = attributes.get(LAYERS, "")
    return max(int(said), highest + 1) if re.fullmatch("[0-9]{1,4}", said) else highest + 1


def _rank(key: VectorKey) -> tuple[int, int]:
    """The order of a run's columns: the vision encoder's, then the vision token, then the query token."""
    return (VISION_ONLY, *POSITIONS).index(key[0]), key[1] or 0


def _digest(files: Sequence[Path]) -> str:
    """A hash of the names and the bytes of the files."""
    whole = hashlib.sha256()
    for path in files:
        if path.is_file():
            with path.open("rb") as file:
                whole.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return whole.hexdigest()
