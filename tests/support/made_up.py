"""Specs and records that no model made, for tests of the run folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from midsight.buckets.path import Place
from midsight.records import Record
from midsight.samples.sample import Failure
from midsight.store import RunSpec, RunWriter, open_run
from midsight.store.schema import StoreDtype
from midsight.store.spec import DatasetSpec, EnvironmentSpec, ModelSpec, PromptSpec, RequestSpec, RiskSpec

VISION = "vision_only_representation"
QUERY_0 = "query_token_representation.layer_0"
QUERY_1 = "query_token_representation.layer_1"
QUERY_1_RAW = "query_token_representation.layer_1_residual"
RUN_ID = "0123456789abcdef" * 2
WIDTHS = {VISION: 6, QUERY_0: 8, QUERY_1: 8, QUERY_1_RAW: 8}


def make_request(**changes: Any) -> RequestSpec:
    """What a made-up run extracts."""
    given: dict[str, Any] = {
        "layers": (0, 1),
        "positions": ("query_token",),
        "residual": True,
        "vision": "mean",
        "processor_pooled_pixels": False,
        "pixels": "pil",
        "answers": True,
        "max_new_tokens": 200,
        "plain_greedy": False,
        "share": True,
        "store_dtype": "float32",
    }
    return RequestSpec(**{**given, **changes})


def make_model_spec(**changes: Any) -> ModelSpec:
    """A model of two layers."""
    given: dict[str, Any] = {
        "name": "made-up",
        "family": "phi4_multimodal",
        "family_file": "phi4.py",
        "family_sha256": "d" * 64,
        "architecture": "Phi4MultimodalForCausalLM",
        "format": "transformers",
        "revision": None,
        "fingerprint": "f" * 64,
        "lora": "merged",
        "notes": ("The folder has no generation_config.json.",),
        "base": "made-up-base",
        "base_revision": "c" * 40,
        "base_fingerprint": "b" * 64,
        "adapter_fingerprint": "a" * 64,
        "adapters": ("default",),
        "fixes": ("vision attention is bidirectional",),
        "dtype": "float32",
        "device_type": "cpu",
        "attention": "sdpa",
        "layers": 2,
        "hidden_size": 8,
        "answer_settings": '{"repetition_penalty": 1.1}',
        "stop_ids": (200020, 199999),
        "longrope_threshold_tokens": 4096,
    }
    return ModelSpec(**{**given, **changes})


def make_prompt_spec(**changes: Any) -> PromptSpec:
    """The question alone, in the family's template."""
    given: dict[str, Any] = {
        "user": "{question}",
        "system": None,
        "template": "family",
        "template_sha256": "a" * 64,
        "is_published": True,
        "rendered": "<|user|>What is this?<|end|><|assistant|>",
    }
    return PromptSpec(**{**given, **changes})


def make_dataset_spec(**changes: Any) -> DatasetSpec:
    """A dataset of unknown size."""
    given: dict[str, Any] = {"path": "made-up.jsonl", "rows": None, "sha256": "d" * 64, "revision": None}
    return DatasetSpec(**{**given, **changes})


def make_risk_spec(**changes: Any) -> RiskSpec:
    """A probe that nobody trained."""
    given: dict[str, Any] = {
        "probe": "made-up/probe",
        "probe_sha256": "e" * 64,
        "column": QUERY_0,
        "label": "correct",
        "of": "false",
        "abstain_above": 0.5,
    }
    return RiskSpec(**{**given, **changes})


def make_environment(**changes: Any) -> EnvironmentSpec:
    """A process on a CPU."""
    given: dict[str, Any] = {
        "device": "cpu",
        "python": "3.11.7",
        "platform": "Linux-x86_64",
        "packages": {"numpy": "2.3.0", "torch": "2.9.0"},
        "midsight_version": "0.1.0",
        "midsight_commit": None,
    }
    return EnvironmentSpec(**{**given, **changes})


def make_spec(*, answers: bool = True, store_dtype: StoreDtype = "float32", **changes: Any) -> RunSpec:
    """A spec with four vector columns and one extra column of each type; always with the same run id."""
    given: dict[str, Any] = {
        "run_id": RUN_ID,
        "request": make_request(answers=answers, max_new_tokens=200 if answers else None, store_dtype=store_dtype),
        "model": make_model_spec(),
        "prompt": make_prompt_spec(),
        "dataset": make_dataset_spec(),
        "environment": make_environment(),
        "vectors": WIDTHS,
        "extras": {"source": "string", "year": "int64", "score": "float64", "hard": "bool", "meta": "json"},
    }
    return RunSpec(**{**given, **changes})


def make_record(index: int, spec: RunSpec | None = None, **changes: Any) -> Record:
    """The record of row `index`, always the same; three questions share an image."""
    given: dict[str, Any] = {
        "sample_id": f"s{index}",
        "input_index": index,
        "image_id": f"image-{index // 3}",
        "image": f"{index // 3}.png",
        "question": f"What is in row {index}?",
        "reference_answers": ("yes", "no")[: index % 3],
        "extras": {"source": "web", "year": index, "score": index / 7, "hard": index % 2 == 0, "meta": {"a": [index]}},
        "answer": f"answer {index}",
        "answer_token_ids": tuple(range(index % 4)),
        "answer_logprobs": tuple(-float(i) for i in range(index % 4)),
        "finish_reason": "length" if index % 5 == 0 else "stop",
        "first_token_entropy": 0.5,
        "first_token_top_ids": (1, 2),
        "first_token_top_logprobs": (-0.25, -1.5),
        "prompt_tokens": 40 + index,
        "image_tokens": 30,
        "vision_token_index": 31,
        "query_token_index": 39 + index,
    }
    if "vectors" not in changes:
        widths = (spec or make_spec()).vectors
        random = np.random.default_rng(index)
        given["vectors"] = {name: random.standard_normal(width).astype(np.float32) for name, width in widths.items()}
    return Record(**{**given, **changes})


def make_failure(index: int, reason: str = "The image is not an image.") -> Failure:
    """The failure of row `index`."""
    return Failure(f"s{index}", index, reason)


def write_run(path: str | Place, records: Iterable[Record], spec: RunSpec | None = None, **options: Any) -> None:
    """Write `records` into the run folder `path`."""
    with RunWriter(path, spec or make_spec(), **options) as writer:
        for record in records:
            writer.add(record)


def files_of(path: Path, suffix: str) -> list[Path]:
    """The parts (`.parquet`) or commit records (`.json`) of a run folder, by name."""
    return sorted((path / "parts").glob(f"*{suffix}"))


def content_of(path: str | Place) -> tuple[list[dict[str, Any]], list[Failure]]:
    """All that a run reads as: its rows in dataset order, every column of them, and its failures."""
    run = open_run(path)
    rows = [row for batch in run.batches(run.columns) for row in batch.to_pylist()]
    assert len(rows) == len(run)
    return sorted(rows, key=lambda row: row["input_index"]), run.failures()
