"""HDF5 parts as a run: vectors, questions and answers under the names of what they are; what is unknown is null."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from midsight.errors import MidsightError, SampleError
from midsight.halp.layout import (
    ANSWER,
    IMAGE,
    QUESTION,
    RUN_ID,
    STORE_DTYPE,
    TRUTH,
    UNKNOWN,
    VERSION,
    is_error_answer,
    references_of,
    sample_id_of,
    without_prompt,
)
from midsight.halp.reading import (
    HDF5_ERRORS,
    StoredSample,
    UnreadableError,
    VectorKey,
    open_part,
    read_sample,
    spell_key,
)
from midsight.halp.survey import Notes, Survey, survey_parts
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY, Record
from midsight.samples.sample import Failure
from midsight.store.optional import import_optional
from midsight.store.schema import StoreDtype
from midsight.store.spec import (
    DatasetSpec,
    EnvironmentSpec,
    ImportSpec,
    ModelSpec,
    PromptSpec,
    RequestSpec,
    RunSpec,
)
from midsight.store.writer import RunWriter
from midsight.taps.tap import POSITIONS, Tap

PACKAGES = ("h5py", "numpy", "pyarrow")
"""Packages whose versions an imported run records."""
NOT_OURS = "Its numbers were not computed or tested by midsight; each column is named for what it holds."
_UNKNOWN: Mapping[str, Any] = dict.fromkeys(
    ("prompt_tokens", "image_tokens", "vision_token_index", "query_token_index")
)
"""Fields of a record that only a run of the model gives."""
NAME_MARK = "name:"
"""Begins the `image_id` of an imported sample: the file's name, because its pixels are not known."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    script: str
    """Which script wrote the files."""
    files: int
    """Files that could be read."""
    samples: int
    """Samples of the run."""
    failed: int
    """Samples that could not be imported."""
    problems: tuple[str, ...]
    """Damaged files and repeated ids, one sentence each."""
    notes: tuple[str, ...]
    """What was left out or is null, and why, one sentence each."""


def import_halp(folder: str | Path, out: str | Path, *, script: str | None = None) -> ImportReport:
    """Makes a run of the HDF5 parts that one of the HALP scripts, or `midsight export`, wrote.

    Args:
        folder: The folder of the parts.
        out: The run folder; an unfinished import is resumed.
        script: Which script wrote them; by default what the files say.

    Returns:
        What was imported.

    Raises:
        MidsightError: There is nothing to import, the script cannot be told, or h5py is missing.
        RunError: `out` is another run, or the disk refuses.
    """
    import_optional("h5py")
    survey = survey_parts(Path(folder), script)
    columns = _columns(survey)
    if not columns:
        raise MidsightError(f"{folder} holds no vectors that are kept: {_left_out(survey)[-1]}")
    notes = Notes()
    with RunWriter(out, describe_import(survey, columns)) as writer:
        for outcome in _outcomes(survey, columns, notes):
            if outcome.sample_id in writer.done:
                continue
            try:
                writer.add(outcome) if isinstance(outcome, Record) else writer.fail(outcome)
            except SampleError as error:
                writer.fail(Failure(outcome.sample_id, outcome.input_index, str(error)))
    return ImportReport(
        script=survey.script_name,
        files=len(survey.parts),
        samples=len(writer.done) - len(writer.failed),
        failed=len(writer.failed),
        problems=survey.problems,
        notes=(*_left_out_columns(survey), *notes.sentences()),
    )


def describe_import(survey: Survey, columns: dict[VectorKey, str]) -> RunSpec:
    """The run.json of an imported run; what the files do not say is null."""
    taps = [tap for name in columns.values() if (tap := Tap.parse_or_none(name))]
    held, said = {*columns.values()}, survey.attributes
    hidden = next((survey.widths[key] for key in columns if key[1] is not None), survey.widths[next(iter(columns))])
    store_dtype: StoreDtype = "float16" if said.get(STORE_DTYPE) == "float16" else "float32"
    return RunSpec(
        request=RequestSpec(
            layers=tuple(sorted({tap.layer for tap in taps})),
            positions=tuple(one for one in POSITIONS if any(tap.position == one for tap in taps)),
            residual=any(tap.stage == "residual" for tap in taps),
            vision="mean" if VISION_ONLY in held else "none",
            processor_pooled_pixels=PROCESSOR_POOLED_PIXELS in held,
            pixels=None,
            answers=survey.answers,
            max_new_tokens=survey.script.max_new_tokens if survey.answers else None,
            plain_greedy=None,
            share=False,
            store_dtype=store_dtype,
        ),
        model=ModelSpec(
            name=said.get("model_name", survey.script.model),
            family=survey.script.model,
            architecture=None,
            format=None,
            revision=None,
            fingerprint=None,
            fixes=(),
            dtype=_known(said, "dtype").removeprefix("torch.") or None,
            lora=None,
            device_type=_known(said, "device").partition(":")[0] or None,
            attention=None,
            layers=survey.layers,
            hidden_size=hidden,
            stop_ids=None,
            answer_settings=None,
            longrope_threshold_tokens=None,
        ),
        prompt=PromptSpec(
            user=None, system=None, template=None, template_sha256=None, is_published=None, rendered=None
        ),
        dataset=DatasetSpec(path=str(survey.folder), rows=survey.samples, sha256=survey.sha256, revision=None),
        environment=EnvironmentSpec(
            device=None, python=platform.python_version(), platform=platform.platform(), packages=_versions()
        ),
        vectors={name: survey.widths[key] for key, name in columns.items()},
        imported=ImportSpec(
            source=_source(survey),
            note=NOT_OURS,
            columns={name: _meaning(survey, key) for key, name in columns.items()},
            left_out=tuple(_left_out(survey)),
            attributes=said,
        ),
    )


def _known(said: Mapping[str, str], name: str) -> str:
    """What the files say; empty if they do not say it, or say that it is unknown."""
    return "" if said.get(name) == UNKNOWN else said.get(name, "")


def _source(survey: Survey) -> str:
    by = f"the script {survey.script_name} ({survey.script.model})"
    if survey.by_midsight:
        by = f"midsight {survey.attributes[VERSION]} from the run {survey.attributes.get(RUN_ID, 'unknown')}"
    return f"HALP HDF5 parts, written by {by}"


def _columns(survey: Survey) -> dict[VectorKey, str]:
    """Dataset -> column of the run, for those that are kept."""
    columns: dict[VectorKey, str] = {}
    for key in survey.widths:
        name, layer = key
        column = (
            survey.script.vision_only.column if layer is None else survey.script.column_of(name, layer, survey.layers)
        )
        if column is not None:
            columns[key] = column
    return columns


def _meaning(survey: Survey, key: VectorKey) -> str:
    name, layer = key
    if layer is None:
        return f"{name} of the files: {survey.script.vision_only.meaning}"
    return survey.script.meaning_of(name, layer, survey.layers)


def _left_out(survey: Survey) -> list[str]:
    return [*survey.problems, *_left_out_columns(survey)]


def _left_out_columns(survey: Survey) -> list[str]:
    vision = survey.script.vision_only
    if (VISION_ONLY, None) not in survey.widths or vision.column is not None:
        return []
    return [f"{VISION_ONLY} is left out: it is {vision.meaning}."]


def _outcomes(survey: Survey, columns: dict[VectorKey, str], notes: Notes) -> Iterator[Record | Failure]:
    """Every sample of the parts once, in order."""
    seen: set[str] = set()
    index = -1
    for part in survey.parts:
        try:
            with open_part(part.path) as file:
                for name in part.names:
                    sample_id = sample_id_of(name, part.attributes).encode("utf-8", "backslashreplace").decode()
                    if sample_id in seen:
                        continue
                    seen.add(sample_id)
                    index += 1
                    try:
                        yield _record(sample_id, index, read_sample(file, name), survey, columns, notes)
                    except (UnreadableError, *HDF5_ERRORS) as error:
                        yield Failure(sample_id, index, f"{part.path}, group {name}: {error}.")
        except UnreadableError as error:
            raise MidsightError(f"The file {part.path} changed while it was read: {error}.") from error


def _record(
    sample_id: str, index: int, stored: StoredSample, survey: Survey, columns: dict[VectorKey, str], notes: Notes
) -> Record:
    for name, why in stored.problems:
        notes.add(f"{name} is left out: {why}", sample_id)
    vectors = {}
    for key, column in columns.items():
        vector = stored.vectors.get(key)
        if vector is None:
            notes.add(f"there is no {spell_key(key)}", sample_id)
        elif problem := _vector_problem(key, vector, survey.widths[key]):
            notes.add(f"{spell_key(key)} is missing in the run: {problem}", sample_id)
        else:
            vectors[column] = vector
    if not vectors:
        raise UnreadableError("it holds no vectors")
    image = stored.texts.get(IMAGE, "")
    return Record(
        sample_id=sample_id,
        input_index=index,
        image_id=f"{NAME_MARK}{image or sample_id}",
        image=image,
        question=stored.texts.get(QUESTION, ""),
        reference_answers=references_of(stored.texts.get(TRUTH), by_midsight=survey.by_midsight),
        extras={},
        answer=_answer(sample_id, stored, survey, notes),
        vectors=vectors,
        **_UNKNOWN,
    )


def _vector_problem(key: VectorKey, vector: np.ndarray, width: int) -> str:
    """Why a vector is not data; empty if it is."""
    if len(vector) != width:
        return f"it has {len(vector)} elements, and the others have {width}"
    if not np.isfinite(vector).all():
        return "it holds values that are not finite"
    return "all of it is zero, which stands for a failure" if key == (VISION_ONLY, None) and not vector.any() else ""


def _answer(sample_id: str, stored: StoredSample, survey: Survey, notes: Notes) -> str | None:
    answer = stored.texts.get(ANSWER)
    if answer is None or survey.by_midsight:
        return answer
    if is_error_answer(answer):
        notes.add("the answer is null: the script stored an error message", sample_id)
        return None
    if survey.script.prompt_in_answer:
        answer = without_prompt(answer, stored.texts.get(QUESTION, ""))
        if answer is None:
            notes.add("the answer is null: the end of the prompt in front of it is not found", sample_id)
    return answer


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
