"""A model without weights: images are decoded, and every vector is computed from image and question.

It replaces only the forward pass, so that hundreds of samples take a second. Command, dataset, calls, failures and
writer are the real ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from midsight.checkpoints import loading
from midsight.checkpoints.generation import AnswerSettings
from midsight.checkpoints.hub import ModelFolder
from midsight.checkpoints.loading import LoadedModel
from midsight.commands import extract as command
from midsight.errors import SampleError
from midsight.extraction import display, extract_call, fill, isolated, on_ray, pipeline, same_run, task
from midsight.extraction.calls import Call
from midsight.extraction.model import Model
from midsight.extraction.prepare import PreparedSample
from midsight.extraction.todo import Progress
from midsight.families.family import Family, Reference, Vision
from midsight.prompts.chat_template import ChatTemplate
from midsight.prompts.declaration import FamilyPrompt
from midsight.prompts.prompt import PromptTokens
from midsight.prompts.token_layout import Span, TokenLayout
from midsight.records import Record
from midsight.samples.images import decode_image, image_id
from midsight.samples.sample import Failure, Sample
from midsight.store import writer
from midsight.store.files import START_LOCK, write_atomically
from midsight.store.lock import START_WAIT_S, Lock, take_lock

QUESTIONS_OF_AN_IMAGE = 5
MISSING_IMAGE = 7
"""Number of the image that does not exist, so that its samples fail."""
SLOW_S = 0.1
"""Time of a sample in a worker of a Ray cluster."""
UNUSED_POSITIONS = torch.zeros((1, 1), dtype=torch.int64)
"""Positions of a prompt, which nothing reads."""


def made_up_model(width: int = 4) -> Model:
    """A model with two layers, and hidden states and vision features of width `width`."""
    text = SimpleNamespace(num_hidden_layers=2, hidden_size=width)
    loaded = LoadedModel(
        hf_model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)),
        processor=SimpleNamespace(
            tokenizer=SimpleNamespace(
                get_added_vocab=dict,
                pad_token_id=0,
                bos_token=None,
                apply_chat_template=lambda messages, **_: f"<image>{messages[-1]['content'][-1]['text']}",
            ),
            image_processor=None,
        ),
        family=_family(width),
        chat_template=ChatTemplate("family", ""),
        name="made-up",
        revision=None,
        format="in memory",
        fingerprint=f"made-up-{width}",
        dtype=torch.float32,
        device=torch.device("cpu"),
        sliding_window=None,
        answer_settings=AnswerSettings(stop_ids=(0,)),
        attention="none",
        lora="none",
        fixes=(),
        notes=(),
    )
    return Model(loaded)


def load_made_up_models() -> None:
    """Makes every model that this process loads a made-up one, whatever its name."""
    loading.open_model = loading.load_model = on_ray.open_model = lambda *_, **__: made_up_model().loaded
    task.find_small_files = lambda *_, **__: ModelFolder(Path("made-up"), None)
    same_run.find_fingerprint = lambda *_, **__: None


@dataclass(frozen=True)
class Behaviour:
    """How the made-up model differs from a fast and harmless one."""

    seconds: float = 0.0
    """Time that each sample takes in the model."""
    waits_for: Path | None = None
    """File without which no sample gets through the model."""
    deadly: str = ""
    """Id of a sample that ends its process."""
    signal: int = signal.SIGABRT
    """The signal by which it does."""
    as_on_gpu: bool = False
    """Whether the command is two processes, and forks cannot use the model."""
    counted: Path | None = None
    """File that always holds the number of samples that the progress display has counted."""
    stops_at_start: bool = False
    """Whether the process stops itself (SIGSTOP) while it holds the lock of starting writers."""
    start_wait_s: float = START_WAIT_S
    """How long a writer waits for another one that is starting."""


def replace_forward_pass(behaviour: Behaviour) -> None:
    """Makes every model of this process prepare and compute samples as the made-up one does."""

    def compute(model: LoadedModel, request: Any, call: Call, *_: Any) -> list[Record]:
        while behaviour.waits_for is not None and not behaviour.waits_for.exists():
            time.sleep(0.01)
        for seen in call.items:
            time.sleep(behaviour.seconds)
            if seen.sample.sample_id == behaviour.deadly:
                os.kill(os.getpid(), behaviour.signal)
        return [_record(seen, request.vectors, request.answers) for seen in call.items]

    extract_call.prepare = pipeline.prepare = _prepare
    extract_call.extract_call = compute
    on_ray.Worker = SlowWorker
    if behaviour.as_on_gpu:
        command.needs_supervisor = lambda _: True
        fill.can_fork = isolated.can_fork = lambda _: False
    if behaviour.counted is not None:
        display.terminal_display = _count_into(behaviour.counted)
    writer.START_WAIT_S = behaviour.start_wait_s
    if behaviour.stops_at_start:
        writer.take_lock = _take_lock_and_stop


class SlowWorker(on_ray.Worker):
    """A worker of a Ray cluster with the made-up model, slow enough to be killed at work."""

    def __init__(self, *arguments: Any) -> None:
        replace_forward_pass(Behaviour(seconds=SLOW_S))
        load_made_up_models()
        super().__init__(*arguments)


def _take_lock_and_stop(path: Path, *, wait_s: float | None = None) -> Lock:
    taken = take_lock(path, wait_s=wait_s)
    if path.name == START_LOCK:
        os.kill(os.getpid(), signal.SIGSTOP)
    return taken


def _count_into(file: Path) -> Any:
    @contextmanager
    def terminal_display(*_: Any) -> Iterator[Any]:
        def show(progress: Progress) -> None:
            write_atomically(file, f"{progress.already + progress.done + progress.failed}".encode(), flush=False)

        yield display.Silent(show)

    return terminal_display


def write_dataset(folder: Path, samples: int, *, missing: int | None = MISSING_IMAGE) -> Path:
    """Writes a JSONL file of `samples` questions, five per image, and all images but one; returns its path."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(samples):
        number = index // QUESTIONS_OF_AN_IMAGE
        if index % QUESTIONS_OF_AN_IMAGE == 0 and number != missing:
            Image.new("RGB", (2, 2), (number % 256, number // 256, 7)).save(folder / "images" / f"{number}.png")
        row = {"id": f"q{index}", "image": f"images/{number}.png", "question": f"What is {index}?", "level": index / 7}
        rows.append(json.dumps(row) + "\n")
    data = folder / "data.jsonl"
    data.write_text("".join(rows))
    return data


def _family(width: int) -> Family:
    """A family that declares only what a run needs before the forward pass."""

    def undeclared(*_: Any) -> Any:
        raise NotImplementedError("The made-up model has no forward pass.")

    return Family(
        name="made-up",
        architecture="MadeUp",
        prompt=FamilyPrompt(image_token="<image>"),  # noqa: S106  (a token of a vocabulary)
        vision=Vision(
            describe=undeclared,
            feature_source="nowhere",
            image_inputs=undeclared,
            encode=undeclared,
            useful_patches=undeclared,
            image_embeddings=undeclared,
            width=lambda _: width,
        ),
        reference=Reference(tower_feature=undeclared),
    )


def _prepare(model: LoadedModel, request: Any, samples: Sequence[Sample], *_: Any) -> list[PreparedSample | Failure]:
    def see(sample: Sample) -> PreparedSample | Failure:
        try:
            seen = image_id(decode_image(sample.images[0]))
        except SampleError as error:
            return Failure(sample.sample_id, sample.input_index, str(error))
        layout = TokenLayout(Span(0, 1), image=(Span(0, 1),), question=Span(0, 0))
        return PreparedSample(sample, seen, (), PromptTokens((int(seen[:8], 16),), layout, ""), UNUSED_POSITIONS)

    return [see(sample) for sample in samples]


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
