"""Whether a call continues the run in its folder, as far as that can be told without a model: no torch is imported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from midsight.buckets.path import Place
from midsight.checkpoints.adapter import find_fingerprint
from midsight.checkpoints.load_options import LoadKeywords, Lora, LoraMode, closest_to_float32
from midsight.extraction.request import Request
from midsight.families.resizing import USUAL_PIXELS
from midsight.prompts.chat_template import ChatTemplate, read_template
from midsight.samples.streams import SampleStream
from midsight.samples.tables import Dataset
from midsight.store.same_spec import require_same_origin, require_same_run
from midsight.store.schema import StoreDtype
from midsight.store.spec import DatasetSpec, ModelSpec, PromptSpec, RequestSpec, is_run, read_spec
from midsight.taps.tap import choose_layers, choose_positions


def require_same_call(
    out: Place,
    data: Dataset | SampleStream,
    request: Request,
    store_dtype: StoreDtype,
    *,
    model: str | Path | None,
    loading: LoadKeywords,
    n_layers: int | None,
) -> bool:
    """Raises RunError if the run in the folder `out` was started with other data, options or another model.

    No run may be there. What only the open model tells is taken as the run has it, and compared when the model is
    open. Returns whether a run is there and nothing is left to compare but what `auto` chooses on this machine.

    Args:
        out: The run folder.
        data: The data of the call.
        request: What the call asks for.
        store_dtype: Type of the stored vectors' elements.
        model: Folder or hub id of the model; None for one in memory.
        loading: How the model is loaded.
        n_layers: Number of the model's decoder layers, None if unknown.
    """
    if not is_run(out):
        return False
    stored = read_spec(out)
    require_same_origin(out, stored, imported=False)
    asked = replace(
        stored,
        request=asked_request(stored.request, request, store_dtype, n_layers),
        prompt=asked_prompt(stored.prompt, request),
        model=stored.model if model is None else asked_model(stored.model, loading),
        dataset=describe_dataset(data),
        risks=request.risk.describe() if request.risk else None,
    )
    require_same_run(out, stored, asked)
    if model is None or loading.get("family") is not None:
        return False
    fingerprint = find_fingerprint(
        model,
        revision=loading.get("revision"),
        base=loading.get("base"),
        base_revision=loading.get("base_revision"),
    )
    if fingerprint is None:
        return False
    named = replace(asked.model, name=str(model), fingerprint=fingerprint)
    require_same_run(out, stored, replace(asked, model=named))
    layers_known = asked_request(stored.request, request, store_dtype, stored.model.layers)  # it is the same model
    require_same_run(out, stored, replace(asked, request=layers_known))
    return (
        request.share == stored.request.share
        and (request.pixels or USUAL_PIXELS) == stored.request.pixels
        and (request.prompt_template != "auto" or stored.prompt.template in ("folder", "family"))
    )


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


def asked_prompt(stored: PromptSpec, request: Request) -> PromptSpec:
    """How a call makes prompts, with the run's chat template where the call leaves it to the model."""
    asked = replace(stored, user=request.prompt, system=request.system)
    if request.prompt_template == "auto":
        return asked
    if request.prompt_template == "raw":
        return replace(asked, template="raw", template_sha256=None)
    given = ChatTemplate(str(request.prompt_template), read_template(request.prompt_template))
    return replace(asked, template=given.source, template_sha256=given.sha256)


def asked_model(stored: ModelSpec, loading: LoadKeywords) -> ModelSpec:
    """How a call loads the run's model, with the run's values where `auto` leaves them to the machine."""
    dtype, device = loading.get("dtype", "auto"), loading.get("device", "auto")
    of_run = stored.dtype if dtype == "auto" else dtype
    own_family = {"family_file": None, "family_sha256": None} if loading.get("family") is None else {}
    return replace(
        stored,
        **own_family,
        dtype=of_run,
        lora=asked_lora(stored.lora, loading.get("lora", "auto"), of_run),
        device_type=stored.device_type if device == "auto" else device.partition(":")[0],
    )


def asked_lora(stored: str | None, lora: Lora, dtype: str | None) -> str | None:
    """How a call applies the LoRA of a run's model, whose weights have a dtype.

    Where no LoRA is beside the weights, opening the model says so if one is asked for.
    """
    if stored not in get_args(LoraMode):
        return stored
    return lora if lora != "auto" else closest_to_float32(dtype)


def describe_dataset(dataset: Dataset | SampleStream) -> DatasetSpec:
    """Where the rows come from; the number of rows of a stream is not known."""
    options: dict[str, Any] = dict(dataset.options)
    if isinstance(dataset, SampleStream):
        origin = {"path": dataset.name, "rows": None, "revision": dataset.revision}
    else:
        origin = {"path": str(dataset.path) if dataset.path else None, "rows": dataset.rows, "revision": None}
    return DatasetSpec(**origin, sha256=dataset.sha256, **options)
