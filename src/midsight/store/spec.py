"""The content of run.json: what a run is. It is written once; same_spec.py compares it when the run is resumed."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from midsight.buckets.path import Place
from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.store.files import RUN_JSON, open_seal, read_json, remedy, reporting_unreadable, sealed_json, write_new
from midsight.store.schema import EXTRA_TYPES, RunColumns, StoreDtype, extra_columns, run_schema
from midsight.store.typed_json import MAY_BE_MISSING, WrongJsonError, field_types, from_json, to_json
from midsight.taps.tap import Tap
from midsight.version import __version__

LONGEST_VECTOR = 2**24
"""Maximum width of a vector column."""
FORMAT_VERSION = 1
"""The newest format of a run folder that this midsight reads, and the one that it writes."""


def decisive(option: str) -> Mapping[str, str]:
    """Field metadata: this field decides the rows, so a resumed call needs the same value of `option`."""
    return {"option": option}


ADDED_LATER: Mapping[str, bool] = {MAY_BE_MISSING: True}
"""Field metadata: the first run folders do not have this field, and its default says what they did."""


@dataclass(frozen=True, kw_only=True)
class RequestSpec:
    """What was extracted from every sample."""

    layers: tuple[int, ...] = field(metadata=decisive("layers"))
    """Decoder layers, ascending."""
    positions: tuple[str, ...] = field(metadata=decisive("positions"))
    """Positions in the prompt whose hidden states are stored."""
    residual: bool = field(metadata=decisive("residual"))
    """Whether the last layer's state before the final norm is stored too."""
    vision: str = field(metadata=decisive("vision"))
    """How the vision encoder's output is pooled; `none` leaves it out."""
    processor_pooled_pixels: bool = field(metadata=decisive("processor_pooled_pixels"))
    """Whether the averaged pixels are stored."""
    pixels: str | None = field(metadata=decisive("pixels"))
    """How images are resized; None if unknown, as other fields of imported runs are."""
    answers: bool = field(metadata=decisive("answers"))
    """Whether answers are decoded, so whether the run has the answer columns."""
    max_new_tokens: int | None = field(metadata=decisive("max_new_tokens"))
    """Maximum number of new tokens; None without answers."""
    plain_greedy: bool | None = field(default=True, metadata={**decisive("plain_greedy"), **ADDED_LATER})
    """Whether answers are of the likeliest tokens, whatever the model's generation config says; None if unknown."""
    share: bool = field(metadata=decisive("share"))
    """Whether questions on the same images share the image's prefix."""
    store_dtype: StoreDtype = field(metadata=decisive("store_dtype"))
    """Type of the stored vectors' elements."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The model that made the rows, as it was loaded."""

    name: str
    """Name of the checkpoint, as the call gave it."""
    family: str
    """The family that it belongs to."""
    family_file: str | None = field(default=None, metadata=ADDED_LATER)
    """The file that declares the family, as the call gave it; None for one that midsight knows."""
    family_sha256: str | None = field(default=None, metadata={**decisive("family"), **ADDED_LATER})
    """Hash of that file."""
    architecture: str | None
    """Class name of the model; None if unknown."""
    format: str | None
    """How the folder stores it: `transformers`, `published phi4mm` or `in memory`; None if unknown."""
    revision: str | None
    """Commit of the checkpoint on the Hugging Face Hub; None if unknown."""
    fingerprint: str | None = field(metadata=decisive("model"))
    """Hash of the weights and of the files that shape the numbers; None if unknown."""
    fixes: tuple[str, ...]
    """Bugs of the installed transformers that were corrected at load."""
    dtype: str | None = field(metadata=decisive("dtype"))
    """Type of the weights in memory; None if unknown."""
    notes: tuple[str, ...] = field(default=(), metadata=ADDED_LATER)
    """What a user should know about the load, one sentence each."""
    lora: str | None = field(metadata=decisive("lora"))
    """The LoRA that was applied; None if unknown."""
    base: str | None = field(default=None, metadata=ADDED_LATER)
    """Folder or hub id of the base model, if `name` is an adapter."""
    base_revision: str | None = field(default=None, metadata=ADDED_LATER)
    """Its commit on the Hugging Face Hub; None if unknown."""
    base_fingerprint: str | None = field(default=None, metadata=ADDED_LATER)
    """Hash of the base model's files; `fingerprint` is that of both."""
    adapter_fingerprint: str | None = field(default=None, metadata=ADDED_LATER)
    """Hash of the adapter's files."""
    adapters: tuple[str, ...] = field(default=(), metadata=ADDED_LATER)
    """Names of the adapters that were on in a model that was given in memory."""
    device_type: str | None = field(metadata=decisive("device"))
    """Kind of the device: cpu, cuda or mps; None if unknown."""
    attention: str | None
    """The attention implementation; None if unknown."""
    layers: int
    """Number of decoder layers."""
    hidden_size: int
    """Width of a hidden state."""
    stop_ids: tuple[int, ...] | None
    """Token ids that end an answer; None if unknown."""
    answer_settings: str | None = field(default="{}", metadata=ADDED_LATER)
    """What its generation config changes about greedy answers, as JSON by transformers' names; None if unknown."""
    longrope_threshold_tokens: int | None
    """Prompt length above which the long rotary factors apply; None if the model has no such factors."""


@dataclass(frozen=True, kw_only=True)
class PromptSpec:
    """How a question becomes a prompt."""

    user: str | None = field(metadata=decisive("prompt"))
    """The user's text, with {question} in it; None if unknown."""
    system: str | None = field(metadata=decisive("system"))
    """Text of the system turn; None is the chat template's own choice, empty text is no system turn."""
    template: str | None
    """Where the chat template comes from: `folder`, `family`, `raw`, or the path of a file; None if unknown."""
    template_sha256: str | None = field(metadata=decisive("prompt_template"))
    """SHA-256 of the chat template's text; None for a raw prompt."""
    is_published: bool | None
    """Whether it renders the published checkpoint's prompt; None if the family has no single one."""
    rendered: str | None
    """One example of a finished prompt; None if unknown."""
    time: str | None = field(default=None, metadata=ADDED_LATER)
    """The local time that the chat template is told in all prompts, as ISO writes it; None if it does not ask."""


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """The dataset, and how its columns were read."""

    path: str | None
    """The dataset as the call named it; None if it was given as objects."""
    rows: int | None
    """Number of rows; None if unknown."""
    sha256: str = field(metadata=decisive("data"))
    """Hash of the dataset's content."""
    revision: str | None
    """Commit of the dataset on the Hugging Face Hub; None if it is not from there."""
    images: str | None = field(default=None, metadata=decisive("images"))
    """Folder that image paths start from."""
    image_column: str | None = field(default=None, metadata=decisive("image_column"))
    """Column of the images."""
    question_column: str | None = field(default=None, metadata=decisive("question_column"))
    """Column of the questions."""
    answer_column: str | None = field(default=None, metadata=decisive("answer_column"))
    """Column of the reference answers."""
    id_column: str | None = field(default=None, metadata=decisive("id_column"))
    """Column of the sample ids."""
    question: str | None = field(default=None, metadata=decisive("question"))
    """The question asked about every image of a folder."""
    split: str | None = field(default=None, metadata=decisive("split"))
    """The split of the dataset."""
    allow_urls: bool = field(default=False, metadata=decisive("allow_urls"))
    """Whether web addresses were accepted as images."""


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """The process that started the run."""

    device: str | None
    """The device by name; None for an imported run."""
    python: str
    """Version of Python."""
    platform: str
    """Operating system and machine."""
    packages: Mapping[str, str]
    """Version by package."""
    midsight_version: str = __version__
    """Version of midsight."""
    midsight_commit: str | None = None
    """Git commit of midsight; None if it was not run from a repository."""


@dataclass(frozen=True, kw_only=True)
class ImportSpec:
    """Where the rows of an imported run come from; midsight did not compute them."""

    source: str
    """What was imported, in words."""
    note: str
    """What a reader of the numbers must know."""
    columns: Mapping[str, str]
    """Vector column -> what it was called, and what it is."""
    left_out: tuple[str, ...]
    """What could not be imported, one sentence each."""
    attributes: Mapping[str, str]
    """What the files say about themselves."""


@dataclass(frozen=True, kw_only=True)
class RiskSpec:
    """The probe that gave each sample a risk before its answer."""

    probe: str | None
    """The probe's folder, as the call gave it; None for one from Python."""
    probe_sha256: str = field(metadata=decisive("probe"))
    """Hash of all that decides its scores."""
    column: str
    """The vector column that it reads."""
    label: str
    """The label that it predicts."""
    of: str = field(metadata=decisive("risk_of"))
    """The value of the label whose probability is the risk: `false` or `true`."""
    abstain_above: float | None = field(metadata=decisive("abstain_above"))
    """The risk above which no answer was decoded; None if all were."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is fixed for a whole run. Its values are as run.json gives them back: lists are tuples."""

    format_version: int = FORMAT_VERSION
    """Version of the run folder's format."""
    run_id: str = field(default_factory=lambda: secrets.token_hex(16))
    """Random id of the run; every commit record repeats it."""
    created: str = field(default_factory=_now)
    """When the run was started: UTC, ISO 8601."""
    request: RequestSpec
    """What was extracted from every sample."""
    model: ModelSpec
    """The model that made the rows."""
    prompt: PromptSpec
    """How a question becomes a prompt."""
    dataset: DatasetSpec
    """The dataset."""
    environment: EnvironmentSpec
    """The process that started the run."""
    vectors: Mapping[str, int]
    """Width by vector column, in stored order."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Type by extra input column, in stored order: string, int64, float64, bool or json."""
    stored_as: Mapping[str, str] = field(default_factory=dict)
    """The column that stores each extra input column; by default what `extra_columns` gives."""
    imported: ImportSpec | None = field(default=None, metadata=ADDED_LATER)
    """Where the rows come from, if midsight did not extract them."""
    risks: RiskSpec | None = field(default=None, metadata=ADDED_LATER)
    """What the column `risk` holds; None if the run has none."""

    def __post_init__(self) -> None:
        for name, kind in field_types(RunSpec).items():
            try:
                value = from_json(kind, to_json(getattr(self, name)), name)
            except (TypeError, ValueError) as error:
                raise MidsightError(f"The {name} of a run cannot be written as JSON: {error}.") from error
            object.__setattr__(self, name, value)
        for name, width in self.vectors.items():
            if not 0 < width <= LONGEST_VECTOR:
                raise MidsightError(
                    f"The vector column {name!r} has the width {width}; a width is 1 to {LONGEST_VECTOR}."
                )
        explained = () if self.imported is None else self.imported.columns
        for name in self.vectors:
            if name not in (VISION_ONLY, PROCESSOR_POOLED_PIXELS) and name not in explained:
                Tap.parse(name)
        for name, type_ in self.extras.items():
            if type_ not in EXTRA_TYPES:
                raise MidsightError(
                    f"The input column {name!r} has the type {type_!r}; choose from {', '.join(EXTRA_TYPES)}."
                )
        if self.stored_as.keys() != self.extras.keys():
            object.__setattr__(self, "stored_as", extra_columns(self.extras))

    @property
    def columns(self) -> RunColumns:
        """What decides the columns of the run's parts."""
        return RunColumns(
            self.vectors,
            self.extras,
            self.stored_as,
            self.request.answers,
            self.request.store_dtype,
            imported=self.imported is not None,
            risk=self.risks is not None,
        )


def write_spec(path: Place, spec: RunSpec) -> None:
    """Write the run.json of the run folder `path`. Raises OSError."""
    inputs = {column: name for name, column in spec.stored_as.items()}
    columns = [
        {"name": column.name, "type": str(column.type)}
        | ({"input": inputs[column.name]} if column.name in inputs else {})
        for column in run_schema(spec.columns)
    ]
    content = to_json(spec)
    del content["stored_as"]  # `columns` says it
    write_new(path / RUN_JSON, sealed_json({**content, "columns": columns}, indent=2))


def is_run(path: Place) -> bool:
    """Whether a run was started in the folder `path`; raises RunError if the folder cannot be read."""
    with reporting_unreadable(path):
        return (path / RUN_JSON).is_file()


def read_spec(path: Place) -> RunSpec:
    """The spec of the run folder `path`.

    Raises MidsightError if `path` is not a run folder, RunError if it was written in a newer format,
    DamagedRunError if its run.json is not what was written.
    """
    file = path / RUN_JSON
    if not is_run(path):
        raise MidsightError(f"{path} is not a run folder: it has no {RUN_JSON}; give the folder of an extraction.")
    # The seal comes first, in every format: a flipped bit must not pass for a newer one.
    content = open_seal(file, read_json(file))
    _refuse_newer_format(path, content)
    columns = content.pop("columns", None)
    try:
        return from_json(RunSpec, {**content, "stored_as": _stored_as(content.get("extras"), columns)})
    except WrongJsonError as error:
        raise DamagedRunError(f"{file} is damaged: {error}; {remedy(file)}.") from error
    except MidsightError as error:
        raise DamagedRunError(f"{file} is damaged: ", *error.args) from error


def _stored_as(extras: Any, columns: Any) -> dict[str, str]:
    """The column of each of the `extras` as the list `columns` of a run.json has them: after the reference answers.

    midsight did not always rename the same input columns, so their names are not derived again.
    """
    try:
        names = [column["name"] for column in columns]
        return dict(zip(extras, names[names.index("reference_answers") + 1 :], strict=False))
    except (TypeError, KeyError, ValueError):
        raise WrongJsonError("columns is not a list of the run's columns") from None


def _refuse_newer_format(path: Place, content: Mapping[str, Any]) -> None:
    version = content.get("format_version")
    if not isinstance(version, int) or version <= FORMAT_VERSION:
        return
    environment = content.get("environment")
    writer = environment.get("midsight_version") if isinstance(environment, dict) else None
    raise RunError(
        f"{path} was written by midsight {writer or '(of an unknown version)'} in format {version}; this is midsight "
        f"{__version__}, which reads formats up to {FORMAT_VERSION}: install a newer one."
    )
