"""A model without weights: images are decoded, and every vector follows from image and question.

It takes the place of the forward pass alone, so that a run of hundreds of samples takes a second and all else is the
product's own: command, dataset, batches, failures, writer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from midsight.errors import SampleError
from midsight.extraction import batch, pipeline
from midsight.extraction.model import Model
from midsight.extraction.prepare import PreparedSample
from midsight.models.adapter import Adapter, PromptText
from midsight.models.layout import Span, TokenLayout
from midsight.models.loading import LoadedModel
from midsight.models.prompts import PromptTokens
from midsight.records import Record
from midsight.samples.images import decode_image, image_id
from midsight.samples.sample import Failure, Sample

QUESTIONS_OF_AN_IMAGE = 5
MISSING_IMAGE = 7
"""Of the images of a dataset, the one that is not there: its samples fail."""
NOWHERE = torch.zeros((1, 1), dtype=torch.int64)
"""Positions of a prompt that nobody reads."""


def made_up_model(width: int = 4) -> Model:
    """A model of two layers; hidden states and vision features are `width` wide."""
    text = SimpleNamespace(num_hidden_layers=2, hidden_size=width)
    loaded = LoadedModel(
        hf_model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)),
        tokenizer=SimpleNamespace(get_added_vocab=dict, pad_token_id=0),
        image_processor=None,
        adapter=_adapter(width),
        name="made-up",
        revision=None,
        layout="in memory",
        fingerprint=f"made-up-{width}",
        dtype=torch.float32,
        device=torch.device("cpu"),
        stop_ids=(0,),
        attention="none",
        lora="none",
        mends=(),
        notes=(),
    )
    return Model(loaded)


def stand_in() -> None:
    """From now on this process prepares and computes samples of every model as the made-up one does."""
    batch.prepare = pipeline.prepare = _prepare
    batch.extract_group = _extract_group


def write_dataset(folder: Path, samples: int) -> Path:
    """A JSONL file of `samples` questions, five to an image, one image missing; its path."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(samples):
        number = index // QUESTIONS_OF_AN_IMAGE
        if index % QUESTIONS_OF_AN_IMAGE == 0 and number != MISSING_IMAGE:
            Image.new("RGB", (2, 2), (number % 256, number // 256, 7)).save(folder / "images" / f"{number}.png")
        row = {"id": f"q{index}", "image": f"images/{number}.png", "question": f"What is {index}?", "level": index / 7}
        rows.append(json.dumps(row) + "\n")
    data = folder / "data.jsonl"
    data.write_text("".join(rows))
    return data


def _adapter(width: int) -> Adapter:
    """A family of which only what a run asks before the forward pass is declared."""
    declared: dict[str, Any] = {
        **dict.fromkeys((field.name for field in fields(Adapter)), None),
        "family": "made-up",
        "architecture": "MadeUp",
        "placeholder": r"<\|image_\d+\|>",
        "default_pixels": "pil",
        "longrope_border": lambda _: None,
        "vision_width": lambda _: width,
        "render_prompt": lambda user_text, question, n_images, system: PromptText(user_text, question),
    }
    return Adapter(**declared)


def _prepare(model: LoadedModel, plan: Any, samples: Sequence[Sample]) -> list[PreparedSample | Failure]:
    def see(sample: Sample) -> PreparedSample | Failure:
        try:
            seen = image_id(decode_image(sample.images[0]))
        except SampleError as error:
            return Failure(sample.sample_id, sample.input_index, str(error))
        layout = TokenLayout(Span(0, 1), image=(Span(0, 1),), question=Span(0, 0))
        return PreparedSample(sample, seen, (), PromptTokens((int(seen[:8], 16),), layout, ""), NOWHERE)

    return [see(sample) for sample in samples]


def _extract_group(model: LoadedModel, plan: Any, group: Sequence[PreparedSample], *_: Any) -> list[Record]:
    return [_record(seen, plan.vectors, plan.answers) for seen in group]


def _record(seen: PreparedSample, widths: dict[str, int], answers: bool) -> Record:
    sample = seen.sample
    asked = hashlib.sha256(f"{seen.image_id} {sample.question}".encode()).digest()
    random = np.random.default_rng(list(asked))
    answered = {
        "answer": f"{asked[0]}",
        "answer_token_ids": (asked[0], 0),
        "answer_logprobs": (-asked[1] / 7, -0.0),
        "finish_reason": "stop",
        "first_token_entropy": asked[2] / 7,
        "first_token_top_ids": (asked[0],),
        "first_token_top_logprobs": (-asked[1] / 7,),
    }
    return Record(
        sample_id=sample.sample_id,
        input_index=sample.input_index,
        image_id=seen.image_id,
        image=sample.image,
        question=sample.question,
        reference_answers=sample.reference_answers,
        extras=sample.extras,
        prompt_tokens=len(sample.question),
        image_tokens=1,
        vision_token_index=1,
        query_token_index=len(sample.question) - 1,
        vectors={name: random.standard_normal(width).astype(np.float32) for name, width in widths.items()},
        **(answered if answers else {}),
    )
