"""What a run is: the content of run.json, written once, and compared when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from midsight import __version__
from midsight.errors import DamagedRunError, MidsightError, RunError
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.store.layout import RUN_JSON, open_seal, read_json, reporting_unreadable, write_sealed_json
from midsight.store.schema import EXTRA_TYPES, FIRST_FORMAT, FORMAT_VERSION, VECTOR_TYPES, run_schema
from midsight.taps.tap import Tap

StoreDtype = Literal["float32", "float16"]


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What is fixed for a whole run. Every mapping holds JSON values only; tuples become lists."""

    options: Mapping[str, Any]
    """What shapes the rows, by command line option (`--layers`); must be equal on resume."""
    model: Mapping[str, Any]
    """Which model: name, fingerprint, LoRA, mends."""
    prompt: Mapping[str, Any]
    """`template`, and one rendered `example`."""
    dataset: Mapping[str, Any]
    """Which dataset, and how its columns were read."""
    environment: Mapping[str, Any]
    """Package versions, device, dtype of the process that started the run."""
    vectors: Mapping[str, int]
    """Width by vector column."""
    answers: bool
    """Whether the run has the answer columns."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """Type by extra input column: string, int64, float64, bool or json."""
    store_dtype: StoreDtype = "float32"
    """Type of the stored vectors' elements."""
    format_version: int = FIRST_FORMAT
    """Version of the run folder's format."""
    midsight_version: str = __version__
    """The midsight that started the run."""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When the run was started: UTC, ISO 8601."""

    def __post_init__(self) -> None:
        for field_ in fields(self):
            object.__setattr__(self, field_.name, _as_json(field_.name, getattr(self, field_.name)))
        for name in self.vectors:
            if name not in (VISION_ONLY, PROCESSOR_POOLED_PIXELS):
                Tap.parse(name)
        for name, type_ in self.extras.items():
            if type_ not in EXTRA_TYPES:
                raise MidsightError(
                    f"The extra column {name!r} has the type {type_!r}; choose from {', '.join(EXTRA_TYPES)}."
                )
        if self.store_dtype not in VECTOR_TYPES:
            raise MidsightError(
                f"The store dtype {self.store_dtype!r} is unknown; choose from {', '.join(VECTOR_TYPES)}."
            )


def write_spec(path: Path, spec: RunSpec) -> None:
    """Write the run.json of the run folder `path`; its `columns` are for human readers. Raises OSError."""
    columns = [{"name": column.name, "type": str(column.type)} for column in run_schema(spec)]
    write_sealed_json(path / RUN_JSON, {**asdict(spec), "columns": columns}, indent=2)


def is_run(path: Path) -> bool:
    """Whether a run was started in the folder `path`; raises RunError where that cannot be told."""
    with reporting_unreadable(path):
        return (path / RUN_JSON).is_file()


def read_spec(path: Path) -> RunSpec:
    """The spec of the run folder `path`.

    Raises MidsightError when `path` is no run folder, RunError when it was written in a newer
    format, DamagedRunError when its run.json is not what was written.
    """
    file = path / RUN_JSON
    if not is_run(path):
        raise MidsightError(f"{path} is no run folder: it has no {RUN_JSON}; give a folder that --out named.")
    # The seal comes first, in every format: a flipped bit must not pass for a newer one.
    content = open_seal(file, read_json(file))
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise RunError(
            f"{path} was written by midsight {content.get('midsight_version')} in format {version}; this is midsight "
            f"{__version__}, which reads formats up to {FORMAT_VERSION}: install a newer one."
        )
    content.pop("columns", None)
    try:
        return RunSpec(**content)
    except TypeError as error:
        raise DamagedRunError(f"{file} is damaged: {error}; restore it from a copy.") from error


def check_same_run(path: Path, stored: RunSpec, asked: RunSpec) -> None:
    """Raise RunError naming the first thing in which `asked` would make other rows than `stored` did."""
    for before, now in zip(_decisive(stored), _decisive(asked), strict=True):
        for name in (*before, *(name for name in now if name not in before)):
            if name not in before or name not in now or before[name] != now[name]:
                raise RunError(
                    f"{path} was started {_phrase(name, before)}, and this call is {_phrase(name, now)}; "
                    "use the old value or another --out."
                )


def _decisive(spec: RunSpec) -> tuple[Mapping[str, Any], ...]:
    return (
        spec.options,
        {"answers": spec.answers, "store dtype": spec.store_dtype},
        {f"vector column {name}": width for name, width in spec.vectors.items()},
        {f"extra column {name}": type_ for name, type_ in spec.extras.items()},
    )


def _phrase(name: str, values: Mapping[str, Any]) -> str:
    return f"with {name} {json.dumps(values[name])}" if name in values else f"without {name}"


def _as_json(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(dict(value) if isinstance(value, Mapping) else value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise MidsightError(f"The {name} of a run cannot be written as JSON: {error}.") from error
