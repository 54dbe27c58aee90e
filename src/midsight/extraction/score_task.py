"""What a call of score asks for, judged as far as that needs no model: torch is not imported."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from midsight.checkpoints.load_options import LoadKeywords
from midsight.errors import MidsightError, Option
from midsight.extraction.risk import choose_risk
from midsight.extraction.task import Task, make_task
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.reports.risks import require_table_name
from midsight.samples.open import Data
from midsight.samples.options import DatasetKeywords
from midsight.store.export_target import require_new
from midsight.store.probe import Probe, RiskOf, known_origin, named
from midsight.taps.tap import Tap

UNFINISHED = ".partial"
"""What the name of the run that is made on the way has after the table's."""


def unfinished_run(out: Path) -> Path:
    """The run folder that holds what is finished until the table `out` is written; the same call resumes it."""
    return out.with_name(out.name + UNFINISHED)


def validate_table(out: Path, *, overwrite: bool) -> None:
    """Raises MidsightError unless a table can be written to `out`."""
    require_table_name(out)
    require_new(out, overwrite=overwrite)


def make_score_task(
    data: Data,
    *,
    model: str | Path | None,
    layers: int | None,
    probe: Probe | str | Path,
    folder: Path,
    risk_of: RiskOf = "false",
    prompt_template: str | Path = "auto",
    share: bool = True,
    limit: int | None = None,
    retry_failed: bool = False,
    loading: LoadKeywords | None = None,
    **options: Unpack[DatasetKeywords],
) -> Task:
    """A call of score with its options judged; prompt, pixels and vectors are those of the probe. Raises MidsightError.

    `model` is the folder or hub id, None for a model in memory; `layers` is its number of decoder layers if that is
    known, `loading` how it is loaded, and `folder` the run folder.
    """
    choice = choose_risk(probe, risk_of, None, answers=False)
    if choice is None:
        raise MidsightError(Option("probe"), " is missing; give one, like RUN/findings/correct/probe.")
    column, origin = choice.probe.column, known_origin(choice.probe)
    tap = Tap.parse_or_none(column)
    if tap is not None and layers is not None and tap.layer >= layers:
        raise MidsightError(
            f"The probe {named(choice.probe)} reads {column} of {origin.model}, and ", Option("model", model),
            f" has {layers} decoder layers; a probe reads no other model's states.",
        )  # fmt: skip
    return make_task(
        data,
        model=model,
        out=folder,
        limit=limit,
        retry_failed=retry_failed,
        loading=loading,
        layers=[tap.layer if tap else 0],
        positions=[tap.position if tap else "query_token"],
        residual=tap is not None and tap.stage == "residual",
        vision="mean" if column == VISION_ONLY else "none",
        processor_pooled_pixels=column == PROCESSOR_POOLED_PIXELS,
        pixels=origin.pixels,  # pyright: ignore[reportArgumentType]  (resolving the request validates it)
        answers=False,
        share=share,
        prompt=origin.prompt or "{question}",
        system=origin.system,
        prompt_template="raw" if origin.template_sha256 is None else prompt_template,
        probe=choice.probe,
        risk_of=choice.of,
        **options,
    )
