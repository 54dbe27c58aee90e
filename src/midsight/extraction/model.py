"""The model as users hold it: loaded once, asked about samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import pyarrow as pa

from midsight.checkpoints.load_options import DeviceMap, Lora
from midsight.checkpoints.loading import LoadedModel, load_model
from midsight.checkpoints.wrapping import wrap_model
from midsight.errors import MidsightError, SampleError, counted
from midsight.extraction.budget import make_budget
from midsight.extraction.needs import estimate_needs
from midsight.extraction.option_help import explains_options
from midsight.extraction.pipeline import extract_all
from midsight.extraction.request import Request, RequestKeywords, make_request, resolve
from midsight.extraction.score import score_data
from midsight.extraction.task import BatchSize, validate_batch_size
from midsight.extraction.todo import Progress, group_by_image
from midsight.records import Record
from midsight.samples.columns import prompt_columns
from midsight.samples.open import Data
from midsight.samples.options import DatasetKeywords, DatasetOptions
from midsight.samples.sample import Failure, ImageSource, Sample
from midsight.samples.tables import Pair, make_samples
from midsight.store.probe import Probe, RiskOf


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

    @explains_options(DatasetOptions)
    def score(
        self,
        data: Data,
        probe: Probe | str | Path,
        *,
        out: str | Path | None = None,
        overwrite: bool = False,
        risk_of: RiskOf = "false",
        prompt_template: str | Path = "auto",
        share: bool = True,
        batch_size: BatchSize = "auto",
        limit: int | None = None,
        retry_failed: bool = False,
        keep_going: bool = False,
        commit_seconds: float = 60.0,
        progress: Callable[[Progress], None] | Literal["bar"] | None = "bar",
        **options: Unpack[DatasetKeywords],
    ) -> pa.Table:
        """The risk of each sample of a dataset, from one pass over its prompt: no answer is decoded.

        Prompt, images and vectors are made as for the run that the probe was trained on.

        Args:
            data: As for midsight.extract.
            probe: A probe, or its folder, like `RUN/findings/correct/probe`.
            out: A table to write too: `.jsonl`, `.csv` or `.parquet`. A call that ended early leaves what is finished
                in the folder `OUT.partial`, and the same call resumes it.
            overwrite: Whether `out` may be replaced.
            risk_of: The value of the probe's label that is the risk: `false` for a label like `correct`, `true` for
                one like `hallucinated`.
            prompt_template: Needed only if the probe's run had a file as its chat template: that file.
            share: Whether questions on the same images share one prefix.
            batch_size: Maximum number of samples in one call of the model; `auto` finds the fastest that memory holds.
            limit: Process only the first rows, this many; None for all.
            retry_failed: Whether samples that failed before are tried again.
            keep_going: Whether to go on even if the first 100 samples all fail.
            commit_seconds: Maximum time between two commits, in seconds.
            progress: As for midsight.extract.
            **options: Which data are used, as in midsight.DatasetOptions:

        Returns:
            A row for each sample in dataset order: `sample_id`, `input_index`, `image`, `question`, `risk` from 0 to 1,
            `first_token_max` (log-probability of the likeliest first token), `first_token_entropy` (in nats),
            `first_token_margin` (between the two likeliest), and for a sample that failed `failure`, the reason.

        Raises:
            MidsightError: The probe belongs to another model or prompt, or an argument has a wrong value.
        """
        return score_data(
            self.loaded,
            data,
            probe,
            out=None if out is None else Path(out),
            overwrite=overwrite,
            risk_of=risk_of,
            prompt_template=prompt_template,
            share=share,
            batch_size=batch_size,
            limit=limit,
            retry_failed=retry_failed,
            keep_going=keep_going,
            commit_seconds=commit_seconds,
            progress=progress,
            **options,
        )

    def _extract(
        self, pairs: Iterable[Sample | Pair], request: Request, batch_size: BatchSize
    ) -> list[Record | Failure]:
        if not self.loaded.has_weights:
            raise MidsightError(f"{self.loaded.name} was loaded with weights=False; load it again without that.")
        validate_batch_size(batch_size)
        dataset = make_samples(pairs)
        resolved = resolve(request, self.loaded, prompt_columns(dataset.extras, dataset.options))
        needs = estimate_needs(self.loaded.config, self.loaded.dtype, logits=resolved.reads_first_token)
        budget = make_budget(batch_size, self.loaded.device, needs)
        samples = group_by_image(dataset.samples)
        calls = extract_all(self.loaded, resolved, samples, budget, note=warnings.warn, say=warnings.warn)
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
    base_revision: str | None = None,
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
        base_revision: Branch, tag or commit of the base model's hub id; by default the one that the adapter names.
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
            base_revision=base_revision,
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
