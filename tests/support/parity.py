"""What transformers gives for a case, and the comparison that every parity test makes."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file

from midsight import Model
from midsight.extraction.extract_call import extract_samples
from midsight.extraction.request import Request, ResolvedRequest
from midsight.records import VISION_ONLY, Record
from midsight.samples.sample import Failure, Sample
from midsight.taps.tap import POSITIONS
from support.once import once
from support.pictures import Case
from support.reference import relative_error

LIMIT = 1e-5
NEW_TOKENS = 16
EVERYTHING = Request(
    layers="all", residual=True, positions=POSITIONS, processor_pooled_pixels=True, max_new_tokens=NEW_TOKENS
)


@dataclass(frozen=True)
class Expected:
    """What transformers gives for one case."""

    vectors: dict[str, np.ndarray]
    answer_token_ids: tuple[int, ...]
    prompt_tokens: int


def rgb(image: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(image))).convert("RGB")


def expect(
    reference: Any,
    images: list[bytes],
    question: str,
    *,
    new_tokens: int = NEW_TOKENS,
    use_cache: bool = True,
    **options,
) -> Expected:
    """What transformers gives; a reference that is kept computes it once in a run of the suite."""
    if not reference.keep:
        return compute_expected(reference, images, question, new_tokens, use_cache, **options)
    asked = [[hashlib.sha256(image).hexdigest() for image in images], question, new_tokens, use_cache, options]
    name = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    folder: Path = reference.folder.parent.parent / "expected" / reference.folder.name
    return read_expected(
        once(
            folder / f"{name}.safetensors",
            lambda file: write_expected(
                file, compute_expected(reference, images, question, new_tokens, use_cache, **options)
            ),
        )
    )


def write_expected(file: Path, expected: Expected) -> None:
    others = {"answer_token_ids": expected.answer_token_ids, "prompt_tokens": [expected.prompt_tokens]}
    save_file(expected.vectors | {name: np.array(numbers) for name, numbers in others.items()}, file)


def read_expected(file: Path) -> Expected:
    stored = load_file(file)
    answer, (prompt_tokens,) = stored.pop("answer_token_ids").tolist(), stored.pop("prompt_tokens").tolist()
    return Expected(stored, tuple(answer), prompt_tokens)


def compute_expected(
    reference: Any, images: list[bytes], question: str, new_tokens: int, use_cache: bool, **options: Any
) -> Expected:
    inputs = reference.inputs([rgb(image) for image in images], question, **options)
    answer = reference.answer(inputs, new_tokens, use_cache=use_cache)
    return Expected(vectors_of(reference, inputs), tuple(answer), inputs["input_ids"].shape[1])


def vectors_of(reference: Any, inputs: Any) -> dict[str, np.ndarray]:
    """Every vector of the first sample of a batch, by column; without padding."""
    forward = reference.forward(inputs)
    is_image = inputs["input_ids"][0].numpy() == reference.image_token_id
    at = {
        "vision_token": lambda states: states[np.flatnonzero(is_image)[-1]],
        "query_token": lambda states: states[-1],
        "image_mean": lambda states: states[is_image].mean(axis=0),
    }
    vectors = {VISION_ONLY: forward.vision_mean}
    for position, read in at.items():
        for layer, states in enumerate(forward.hidden_states[1:]):
            vectors[f"{position}_representation.layer_{layer}"] = read(states)
        last = len(forward.hidden_states) - 2
        vectors[f"{position}_representation.layer_{last}_residual"] = read(forward.last_residual)
    return vectors


def assert_parity(record: Record, expected: Expected) -> None:
    assert record.prompt_tokens == expected.prompt_tokens
    errors = {name: relative_error(record.vectors[name], vector) for name, vector in expected.vectors.items()}
    assert max(errors.values()) <= LIMIT, f"{max(errors, key=errors.__getitem__)} is off by {max(errors.values()):.1e}"
    assert record.answer_token_ids == expected.answer_token_ids, "the answers differ"


def extract_records(model: Model, request: ResolvedRequest, samples: Sequence[Sample], **options: Any) -> list[Record]:
    """One record for each sample; a failure fails the test."""
    outcomes = extract_samples(model.loaded, request, samples, **options)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert failures == []
    return [outcome for outcome in outcomes if isinstance(outcome, Record)]


def answer_ids(record: Record) -> tuple[int, ...]:
    """The answer's tokens; a record without answer fails the test."""
    assert record.answer_token_ids is not None
    return record.answer_token_ids


def samples_of(cases: Sequence[Case]) -> list[Sample]:
    return [Sample(case.name, index, (case.image,), case.question) for index, case in enumerate(cases)]
