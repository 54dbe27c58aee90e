"""The model as users hold it: loaded once, asked about samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from midsight.checkpoints.device_map import DeviceMap
from midsight.checkpoints.loading import LoadedModel, Lora, load_model
from midsight.checkpoints.wrapping import wrap_model
from midsight.errors import MidsightError, SampleError, counted
from midsight.extraction.budget import make_budget
from midsight.extraction.needs import estimate_needs
from midsight.extraction.option_help import explains_options
from midsight.extraction.pipeline import extract_all
from midsight.extraction.request import Request, RequestKeywords, make_request, resolve
from midsight.extraction.task import BatchSize, validate_batch_size
from midsight.extraction.todo import group_by_image
from midsight.records import Record
from midsight.samples.columns import prompt_columns
from midsight.samples.sample import Failure, ImageSource, Sample
from midsight.samples.tables import Pair, make_samples


@dataclass(frozen=True)
class Model:
    """A loaded model that extracts records from image-question pairs."""

    loaded: LoadedModel
    """transformers' model and processor, and what was found at load."""

    def __repr__(self) -> str:
        loaded = self.loaded
        weights = "" if loaded.has_weights else ", without weights"
        dtype = str(loaded.dtype).removeprefix("torch.")
        return (
            f"Model({loaded.name!r})\n  {loaded.family.name}, {dtype} on {loaded.device}, LoRA {loaded.lora}{weights}\n"
            f"  {counted(loaded.n_layers, 'layer')} of width {loaded.hidden_size}, vision encoder of width "
            f"{loaded.family.vision.width(loaded.config)}"
        )

    @explains_options(Request)
    def extract(self, image: ImageSource | str, question: str, **options: Unpack[RequestKeywords]) -> Record:
        """The record of one image and one question.

        Args:
            image: A path, an encoded image as bytes, or a PIL image.
            question: The user's text.
            **options: What is extracted, as in midsight.Request:

        Returns:
            The record, its vectors float32.

        Raises:
            SampleError: The pair cannot be extracted.
            MidsightError: An option has a wrong name or value.
        """
        (outcome,) = self._extract([(image, question)], make_request(options), 1)
        if isinstance(outcome, Failure):
            raise SampleError(outcome.reason)
        return outcome

    @explains_options(Request)
    def extract_many(
        self,
        pairs: Iterable[Sample | Pair],
        *,
        batch_size: BatchSize = "auto",
        **options: Unpack[RequestKeywords],
    ) -> list[Record | Failure]:
        """The records of many pairs, kept in memory.

        Args:
            pairs: (image, question) pairs or Samples.
            batch_size: Maximum number of samples in one call of the model; `auto` finds the
                fastest that memory holds.
            **options: What is extracted, as in midsight.Request:

        Returns:
            A record, or a failure with its reason, for each pair, in their order.

        Raises:
            MidsightError: An option has a wrong name or value, an item is not a pair or a Sample, or an id repeats.
        """
        return self._extract(pairs, make_request(options, call=("batch_size",)), batch_size)

    def _extract(
        self, pairs: Iterable[Sample | Pair], request: Request, batch_size: BatchSize
    ) -> list[Record | Failure]:
        if not self.loaded.has_weights:
            raise MidsightError(f"{self.loaded.name} was loaded with weights=False; load it again without that.")
        validate_batch_size(batch_size)
        dataset = make_samples(pairs)
        resolved = resolve(request, self.loaded, prompt_columns(dataset.extras, dataset.options))
        needs = estimate_needs(self.loaded.config, self.loaded.dtype, answers=resolved.answers)
        budget = make_budget(batch_size, self.loaded.device, needs)
        calls = extract_all(self.loaded, resolved, group_by_image(dataset.samples), budget, note=warnings.warn)
        outcomes = [outcome for call in calls for outcome in call]
        return sorted([*outcomes, *dataset.failures], key=lambda outcome: outcome.input_index)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    base: str | Path | None = None,
    device_map: DeviceMap | None = None,
    family: str | Path | None = None,
    audio: bool = False,
    weights: bool = True,
) -> Model:
    """Loads a model.

    Args:
        source: Folder of a model or of a PEFT adapter, or hub id like `owner/name`, which is downloaded.
        revision: Branch, tag or commit of a hub id; None for the main branch.
        dtype: Precision of the weights: `auto`, `float32`, `bfloat16` or `float16`. `auto` is the checkpoint's dtype on
            a GPU; on a CPU it is float32 if that fits in memory, else the checkpoint's.
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`; `auto` is a GPU of CUDA if there is one, else the CPU.
        lora: How an adapter, and a LoRA that image input needs, are applied: `merged` into the weights, `unmerged`
            beside them, or `off`, which gives another model's numbers. `auto` merges in float32, and keeps them beside
            weights in 16 bits.
        base: Folder or hub id of an adapter's base model; by default the one that the adapter names.
        device_map: `auto` puts decoder layers on all GPUs, in main memory and on disk, as far as they fit; a mapping
            like {0: "cuda:1", 1: "disk"} says it for single layers. The rest of the model is on `device`. None puts
            the whole model there.
        family: A Python file that declares the model's family, for one that midsight does not know; its proof, which
            `midsight adapter` writes, lies beside it.
        audio: Whether the audio tower is loaded too, which no image prompt uses.
        weights: If False, only config and processor are loaded; `midsight.extract` loads the weights when it needs
            them.

    Returns:
        The model.

    Raises:
        MidsightError: The model cannot be loaded, or an argument has a wrong value.
    """
    return Model(
        load_model(
            source,
            revision=revision,
            dtype=dtype,
            device=device,
            lora=lora,
            base=base,
            device_map=device_map,
            family=family,
            audio=audio,
            weights=weights,
        )
    )


def wrap(hf_model: Any, hf_processor: Any) -> Model:
    """Takes a model that you loaded yourself.

    Args:
        hf_model: A transformers model of a known family, or a PEFT model around one; its known bugs are corrected
            in place.
        hf_processor: Its processor, as AutoProcessor makes it.

    Returns:
        The model, its weights unchanged.

    Raises:
        MidsightError: The family is unknown, or the processor belongs to another.
    """
    return Model(wrap_model(hf_model, hf_processor))
