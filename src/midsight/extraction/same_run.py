"""Whether a call continues the run in its folder, as far as that can be told without a model: no torch is imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from midsight.extraction.request import Request
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset
from midsight.store.same_spec import require_same_origin, require_same_run
from midsight.store.schema import StoreDtype
from midsight.store.spec import DatasetSpec, RequestSpec, is_run, read_spec
from midsight.taps.tap import choose_layers, choose_positions


def require_same_call(
    out: Path, data: Dataset | SampleStream, request: Request, store_dtype: StoreDtype, n_layers: int | None
) -> None:
    """Raises RunError if the run in the folder `out` was started with other data or options; no run may be there.

    What follows from the model is taken as the run has it, and compared when the model is open. `n_layers` is its
    number of decoder layers, None if unknown.
    """
    if not is_run(out):
        return
    stored = read_spec(out)
    require_same_origin(out, stored, imported=False)
    asked = replace(
        stored,
        request=asked_request(stored.request, request, store_dtype, n_layers),
        prompt=replace(stored.prompt, user=request.prompt, system=request.system),
        dataset=describe_dataset(data),
        risks=request.risk.describe() if request.risk else None,
    )
    require_same_run(out, stored, asked)


def asked_request(stored: RequestSpec, request: Request, store_dtype: StoreDtype, n_layers: int | None) -> RequestSpec:
    """What a call asks for, with the run's values where they depend on the model."""
    return replace(
        stored,
        layers=stored.layers if n_layers is None else choose_layers(request.layers, n_layers),
        positions=choose_positions(request.positions),
        residual=request.residual,
        vision=request.vision,
        processor_pooled_pixels=request.processor_pooled_pixels,
        pixels=request.pixels or stored.pixels,
        answers=request.answers,
        max_new_tokens=request.max_new_tokens if request.answers else None,
        plain_greedy=request.plain_greedy,
        share=stored.share and request.share,
        store_dtype=store_dtype,
    )


def describe_dataset(dataset: Dataset | SampleStream) -> DatasetSpec:
    """Where the rows come from; the number of rows of a stream is not known."""
    options: dict[str, Any] = dict(dataset.options)
    if isinstance(dataset, SampleStream):
        origin = {"path": dataset.name, "rows": None, "revision": dataset.revision}
    else:
        origin = {"path": str(dataset.path) if dataset.path else None, "rows": dataset.rows, "revision": None}
    return DatasetSpec(**origin, sha256=dataset.sha256, **options)
