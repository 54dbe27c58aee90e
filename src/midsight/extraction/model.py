"""The model as users hold it: loaded once, asked about samples."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from midsight.errors import SampleError
from midsight.extraction.budget import BatchSize, make_budget
from midsight.extraction.pipeline import extract_all
from midsight.extraction.request import Request, resolve
from midsight.extraction.todo import group_by_image
from midsight.models.loading import LoadedModel, Lora, load_model, wrap_model
from midsight.records import Record
from midsight.samples.sample import Failure, ImageSource, Sample
from midsight.samples.tables import make_samples


@dataclass(frozen=True)
class Model:
    """A loaded model that extracts records from image-question pairs."""

    loaded: LoadedModel
    """transformers' model, tokenizer and image processor, and what was found at load."""

    def extract(self, image: ImageSource | str, question: str, **options: Any) -> Record:
        """The record of one image (path, encoded bytes or PIL image) and question.

        `options` are the fields of Request: layers, positions, residual, vision,
        processor_pooled_pixels, pixels, answers, max_new_tokens, prompt, system.
        Raises SampleError where the pair cannot be extracted.
        """
        outcome = self.extract_many([(image, question)], batch_size=1, **options)[0]
        if isinstance(outcome, Failure):
            raise SampleError(outcome.reason)
        return outcome

    def extract_many(
        self,
        pairs: Iterable[Sample | tuple[ImageSource | str, str]],
        *,
        batch_size: BatchSize = "auto",
        **options: Any,
    ) -> list[Record | Failure]:
        """One outcome for each pair, in their order, kept in memory; `options` as for extract.

        batch_size: most samples in one call of the model; `auto` measures what memory holds.
        """
        budget = make_budget(batch_size, self.loaded.device)
        plan = resolve(Request(**options), self.loaded)
        dataset = make_samples(pairs)
        calls = extract_all(self.loaded, plan, group_by_image(dataset.samples), budget)
        outcomes = [outcome for call in calls for outcome in call]
        return sorted([*outcomes, *dataset.failures], key=lambda outcome: outcome.input_index)


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    audio: bool = False,
    weights: bool = True,
) -> Model:
    """Loads a model folder or hub id; see load_model for the options. Raises MidsightError."""
    return Model(
        load_model(source, revision=revision, dtype=dtype, device=device, lora=lora, audio=audio, weights=weights)
    )


def wrap(hf_model: Any, hf_processor: Any) -> Model:
    """A transformers model of a known family that you loaded yourself, with its processor."""
    return Model(wrap_model(hf_model, hf_processor))
