"""A run as the HDF5 parts of the original scripts: 1,000 samples each, in one pass over the run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from midsight.errors import MidsightError, Option, counted
from midsight.halp.layout import (
    AFTER_NORM,
    ANSWER,
    BEFORE_NORM,
    IDS,
    IMAGE,
    INPUT_INDEX,
    LAST_LAYER,
    LAYERS,
    PERCENT_ENCODED,
    QUESTION,
    RUN_ID,
    SAMPLES_PER_PART,
    STORE_DTYPE,
    TRUTH,
    UNKNOWN,
    VERSION,
    VISION_ONLY_IS,
    group_name,
    layer_name,
    needs_encoding,
    numeric_ids,
    part_name,
    truth_text,
)
from midsight.halp.reading import UnreadableError, open_part, read_attributes
from midsight.halp.scripts import QUERY_TOKEN, SCRIPTS, VISION_TOKEN
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.store.export_target import new_target
from midsight.store.exports import chosen_rows
from midsight.store.optional import import_optional
from midsight.store.reader import Run
from midsight.store.rows import Rows
from midsight.store.vectors import vectors_of
from midsight.taps.tap import Tap
from midsight.version import __version__

VISION_ONLY_COLUMNS: Mapping[str, str] = {"encoder": VISION_ONLY, "pixels": PROCESSOR_POOLED_PIXELS}
"""What may stand under `vision_only_representation`, by the name that the user gives it; the first that a run has."""
_IN_WORDS = {"encoder": "the encoder's mean", "pixels": "the processor's pixels"}
TEXT_COLUMNS = ("sample_id", "input_index", "image", "question", "reference_answers")

_MODEL_TYPES = {
    "Phi4MultimodalForCausalLM": "phi4",
    "MllamaForConditionalGeneration": "llama",
    "Gemma3ForConditionalGeneration": "gemma",
    "Qwen2_5_VLForConditionalGeneration": "qwen",
    "SmolVLMForConditionalGeneration": "smolvlm",
}
"""transformers' class -> the script for it."""


@dataclass(frozen=True)
class _Plan:
    """What goes where."""

    vectors: Mapping[str, str]
    """Column -> dataset within the sample's group."""
    answers: bool
    """Whether the run has answers."""
    encoded: bool
    """Whether ids are percent-encoded."""
    attributes: Mapping[str, Any]
    """The attributes that every file gets; each file adds its number of samples."""

    @property
    def columns(self) -> list[str]:
        return [*TEXT_COLUMNS, *(["answer"] if self.answers else []), *self.vectors]


@dataclass
class HalpExport:
    """What an export did."""

    parts: int
    """Files that were written."""
    samples: int
    """Samples in them."""
    notes: list[str]
    """What a user should know, one sentence each."""


def export_halp(
    run: Run,
    out: str | Path,
    *,
    vision_only: str | None = None,
    samples: Collection[str] | None = None,
    overwrite: bool = False,
) -> HalpExport:
    """Writes a run as the HDF5 parts that the HALP scripts make.

    Args:
        run: The run.
        out: The folder of the parts.
        vision_only: What stands under `vision_only_representation`: `encoder` for the encoder's mean, or `pixels` for
            the processor's pixels, which the script for Phi-4 stores. By default the first of them that the run has.
        samples: Ids of samples; by default all.
        overwrite: Replace a folder of parts that midsight wrote.

    Returns:
        What was written.

    Raises:
        MidsightError: `vision_only` names what the run does not have, h5py is missing, or `out` is there already.
        RunError: The disk refuses.
        DamagedRunError: Stored bytes are not those that were written.
    """
    import_optional("h5py")
    if overwrite:
        _require_own_parts(Path(out))
    rows = chosen_rows(run, samples)
    ids = run.sample_ids() if samples is None else samples
    plan = _plan(run, vision_only, encoded=needs_encoding(ids))
    notes = _notes(run, plan, ids)
    model_type = str(plan.attributes["model_type"])
    parts = max(1, -(-rows.count // SAMPLES_PER_PART))
    with new_target(run, Path(out), "halp", folder_of=".h5", overwrite=overwrite) as made:
        made.mkdir()
        files = [made / part_name(model_type, number + 1) for number in range(parts)]
        for number, file in enumerate(files):
            count = min(SAMPLES_PER_PART, rows.count - number * SAMPLES_PER_PART)
            _start_part(file, {**plan.attributes, "num_samples": count})
        replaced = sum(_write_rows(files[number], some, plan) for number, some in _by_part(run, rows, plan.columns))
    if replaced:
        notes.append(f"A zero byte, which ends a text in HDF5, is written as U+FFFD in {counted(replaced, 'text')}.")
    return HalpExport(parts, rows.count, notes)


def _plan(run: Run, vision_only: str | None, *, encoded: bool) -> _Plan:
    which, layers = _which_vision_only(run, vision_only), _layers(run)
    if which is None and not layers:
        raise MidsightError(f"{run.path} has no vectors that the HALP format has a place for.")
    last = [tap.stage for name in layers if (tap := Tap.parse(name)).layer == run.spec.model.layers - 1]
    spec = run.spec
    attributes = {
        "model_name": spec.model.name,
        "model_type": _model_type(run),
        "device": spec.environment.device or spec.model.device_type or UNKNOWN,
        "dtype": spec.model.dtype or UNKNOWN,
        "created_at": spec.created,
        VERSION: __version__,
        RUN_ID: spec.run_id,
        VISION_ONLY_IS: which or "none",
        LAST_LAYER: "not stored" if not last else BEFORE_NORM if last[0] == "residual" else AFTER_NORM,
        STORE_DTYPE: spec.request.store_dtype,
        IDS: PERCENT_ENCODED if encoded else "plain",
        LAYERS: spec.model.layers,
    }
    vectors = layers if which is None else {VISION_ONLY_COLUMNS[which]: VISION_ONLY, **layers}
    return _Plan(vectors, spec.request.answers, encoded, attributes)


def _require_own_parts(out: Path) -> None:
    """Raises MidsightError if a folder holds parts that midsight did not write, because they may be the only ones."""
    for file in sorted(out.glob("*.h5")):
        try:
            with open_part(file) as opened:
                own = VERSION in read_attributes(opened)
        except UnreadableError:
            own = False
        if not own:
            raise MidsightError(f"{file} was not written by midsight, so it is not replaced; choose another ",
                                Option("out"), ".")  # fmt: skip


def _which_vision_only(run: Run, asked: str | None) -> str | None:
    """`encoder` or `pixels`; None if the run has neither and none was asked for."""
    if asked is None:
        return next((which for which, column in VISION_ONLY_COLUMNS.items() if column in run.spec.vectors), None)
    if asked not in VISION_ONLY_COLUMNS:
        raise MidsightError(Option("vision_only", asked), " is unknown; choose encoder or pixels.")
    if VISION_ONLY_COLUMNS[asked] not in run.spec.vectors:
        remedy = Option("processor_pooled_pixels", True) if asked == "pixels" else Option("vision", "mean")
        raise MidsightError(
            f"{run.path} has no column {VISION_ONLY_COLUMNS[asked]} for ", Option("vision_only", asked),
            "; extract it with ", remedy, ", or choose the other one.",
        )  # fmt: skip
    return asked


def _layers(run: Run) -> dict[str, str]:
    """Column -> dataset. The last layer is the normed one, if the run has both."""
    taps = [tap for tap in run.taps if f"{tap.position}_representation" in (VISION_TOKEN, QUERY_TOKEN)]
    normed = {(tap.position, tap.layer) for tap in taps if tap.stage == "layer"}
    return {
        str(tap): f"{tap.position}_representation/{layer_name(tap.layer)}"
        for tap in taps
        if tap.stage == "layer" or (tap.position, tap.layer) not in normed
    }


def _model_type(run: Run) -> str:
    """The attribute of the original files; for other models, the family's name in the same style."""
    spec = run.spec.model
    for name, script in SCRIPTS.items():
        if script.model_type and (_MODEL_TYPES.get(spec.architecture or "") == name or script.model == spec.family):
            return script.model_type
    return spec.family.casefold().replace(" ", "-")


def _notes(run: Run, plan: _Plan, ids: Collection[str]) -> list[str]:
    notes = []
    which = plan.attributes[VISION_ONLY_IS]
    other = [name for name, column in VISION_ONLY_COLUMNS.items() if name != which and column in run.spec.vectors]
    if other:
        notes.append(
            f"Under {VISION_ONLY} the files have {_IN_WORDS[which]}; --vision-only {other[0]} puts "
            f"{_IN_WORDS[other[0]]} there."
        )
    elif which == "pixels":
        notes.append(f"Under {VISION_ONLY} the files have {_IN_WORDS[which]}, because the run has no encoder's mean.")
    left_out = [name for name in run.vector_columns if name not in (*plan.columns, *VISION_ONLY_COLUMNS.values())]
    if left_out:
        notes.append(f"The format has no place for {', '.join(left_out)}; export them with another --format.")
    if numbers := numeric_ids(ids):
        notes.append(
            f"Ids such as {numbers[0]!r} are read as numbers by pandas, and the probe scripts then find no sample; "
            "read their labels as text."
        )
    if plan.encoded:
        notes.append(
            "Some ids cannot be names of groups, so all are percent-encoded; in labels for the probe scripts, write "
            "them as urllib.parse.quote(id, safe=' ') does."
        )
    return notes


def _by_part(run: Run, rows: Rows, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
    """The rows of each part, a piece at a time; a part may come several times, because rows are stored in any order."""
    for batch, places in run.placed_batches(columns, rows):
        number = places // SAMPLES_PER_PART
        for part in np.unique(number).tolist():
            yield part, batch.filter(pa.array(number == part))


def _start_part(file: Path, attributes: Mapping[str, Any]) -> None:
    h5py = import_optional("h5py")
    with h5py.File(file, "w") as opened:
        for name, value in attributes.items():
            opened.attrs[name] = value


def _write_rows(file: Path, rows: pa.Table, plan: _Plan) -> int:
    """Adds samples to a part; returns how many texts were changed, because they hold a zero byte."""
    h5py = import_optional("h5py")
    text_type = h5py.string_dtype("utf-8")
    vectors = {name: vectors_of(rows, name).astype(np.float32) for name in plan.vectors}
    replaced = 0
    with h5py.File(file, "r+") as opened:
        for index, row in enumerate(rows.drop_columns([*vectors]).to_pylist()):
            group = opened.create_group(group_name(row["sample_id"], encoded=plan.encoded))
            group.attrs[INPUT_INDEX] = row["input_index"]
            for name, text in _texts(row).items():
                replaced += "\0" in text
                group.create_dataset(name, data=text.replace("\0", "\ufffd"), dtype=text_type)
            for column, values in vectors.items():
                if not np.isnan(values[index]).all():  # missing, in an imported run
                    group.create_dataset(plan.vectors[column], data=values[index], compression="gzip")
    return replaced


def _texts(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a sample; an answer that is missing has no dataset, because a text would be one."""
    texts = {IMAGE: row["image"], QUESTION: row["question"], TRUTH: truth_text(row["reference_answers"])}
    return texts if row.get("answer") is None else {**texts, ANSWER: row["answer"]}
