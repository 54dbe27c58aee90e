"""Measures one procedure on one case: `python -m benchmarks.measure TASK RESULT`, two JSON files."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from benchmarks.data import Row, write_dataset

Procedure = Literal["original", "batches", "midsight"]
CallMade = tuple[int, float, int, int]
"""A call of the model: samples, seconds, decode steps, and tokens without padding, each answer at its longest."""


@dataclass(frozen=True)
class Task:
    """What one process measures."""

    procedure: Procedure
    """One of the three procedures."""
    size: str
    """Size of the model."""
    device: str
    """Device that runs it."""
    rows: list[Row]
    """The samples."""
    batch_size: int | str
    """Maximum number of samples in one call of the model; midsight's default is `auto`."""

    @property
    def longest(self) -> int:
        """Number of tokens in the longest answer."""
        return max(row.new_tokens for row in self.rows)


@dataclass(frozen=True)
class Measured:
    """The result of one process."""

    seconds: float
    """Time for all samples, from image files to vectors and answers (midsight: to the run folder)."""
    cpu_seconds: float
    """CPU time over all cores: the fairer measure on a machine with other work."""
    peak_bytes: int
    """Peak memory, minus what the loaded model takes."""
    machine: dict[str, Any]
    """The machine, as `cost.machine` describes it."""
    phases: dict[str, float] = field(default_factory=dict)
    """Share of midsight's time in each phase, on the thread that runs the model."""
    background: dict[str, float] = field(default_factory=dict)
    """Share of midsight's time in each phase, on other threads."""
    calls: list[CallMade] = field(default_factory=list)
    """Midsight's calls of the model."""
    peak_shares: dict[str, float] = field(default_factory=dict)
    """Speed of vision, prefill and decode, as a share of `peak_flops`."""
    peak_flops: float = 0.0
    """Highest speed of a matrix product, in floating-point operations per second."""


def measure(task: Task) -> Measured:
    """Loads the model, runs the procedure on one sample as a warm-up, then times it on all."""
    from benchmarks.cost import machine, watched_memory
    from benchmarks.models import random_model
    from benchmarks.stopping import StopAfter

    model, processor = random_model(task.size, task.device)
    if task.longest:
        StopAfter(model, processor.tokenizer, {row.question: row.new_tokens for row in task.rows})
    run = {"original": run_original, "batches": run_batches, "midsight": run_midsight}[task.procedure]
    with watched_memory(task.device) as peak_bytes:
        results = run(task, model, processor)
        return Measured(peak_bytes=peak_bytes(), machine=machine(), **results)


def default_layers(config: Any) -> list[int]:
    """midsight's default layers: first, quarters and last."""
    n = config.num_hidden_layers
    return sorted({0, n // 4, n // 2, 3 * n // 4, n - 1})


def run_original(task: Task, model: Any, processor: Any) -> dict[str, Any]:
    """Times the original procedure."""
    from benchmarks.original import original

    layers = default_layers(model.config)
    for _ in original(model, processor, task.rows[:1], layers):
        pass
    began, worked = time.perf_counter(), time.process_time()
    answers = [seen.answer_token_ids for seen in original(model, processor, task.rows, layers)]
    took, worked = time.perf_counter() - began, time.process_time() - worked
    require_lengths(task, [len(answer) for answer in answers])
    return {"seconds": took, "cpu_seconds": worked}


def run_batches(task: Task, model: Any, processor: Any) -> dict[str, Any]:
    """Times transformers in plain batches."""
    from benchmarks.original import plain_batches
    from benchmarks.stopping import END_ID

    layers, size = default_layers(model.config), int(task.batch_size)
    for _ in plain_batches(model, processor, task.rows[:1], layers, size):
        pass
    began, worked = time.perf_counter(), time.process_time()
    answers = [seen.answer_token_ids for seen in plain_batches(model, processor, task.rows, layers, size)]
    took, worked = time.perf_counter() - began, time.process_time() - worked
    # a cut answer has the maximum length and also ends in the stop token
    require_lengths(task, [answer.index(END_ID) + 1 if answer else 0 for answer in answers])
    return {"seconds": took, "cpu_seconds": worked}


def run_midsight(task: Task, model: Any, processor: Any) -> dict[str, Any]:
    """Times `midsight.extract`, from a JSONL file to a run folder."""
    import midsight
    from benchmarks.cost import matrix_peak
    from benchmarks.phases import clocked, watched_calls

    peak = matrix_peak(task.device)
    wrapped = midsight.wrap(model, processor)
    options: dict[str, Any] = {
        "layers": default_layers(model.config),
        "answers": task.longest > 0,
        "max_new_tokens": max(task.longest, 1),
        **({} if task.batch_size == "auto" else {"batch_size": task.batch_size}),
        "images": Path(task.rows[0].image).parent,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        one = write_dataset(task.rows[:1], folder / "one.jsonl")
        midsight.extract(one, model=wrapped, out=folder / "one", **options)
        data = write_dataset(task.rows, folder / "all.jsonl")
        with clocked() as clock, watched_calls() as calls:
            began, worked = time.perf_counter(), time.process_time()
            run = midsight.extract(data, model=wrapped, out=folder / "all", **options)
            took, worked = time.perf_counter() - began, time.process_time() - worked
        table = run.table().to_pydict()
    if len(table["question"]) != len(task.rows):
        raise RuntimeError(f"midsight stored {len(table['question'])} of {len(task.rows)} samples.")
    if task.longest:
        require_lengths(task, [len(token_ids) for token_ids in table["answer_token_ids"]])
    peak = max(peak, matrix_peak(task.device))
    needed = flops_needed(task.rows, table, model.config, processor.image_processor.dynamic_hd)
    phases = {name: seconds / took for name, seconds in clock.seconds.items()}
    phases["waiting"] = 1 - sum(phases.values())
    return {
        "seconds": took,
        "cpu_seconds": worked,
        "phases": phases,
        "background": {name: seconds / took for name, seconds in clock.background.items()},
        "calls": calls,
        "peak_shares": {name: needed[name] / clock.seconds[name] / peak for name in needed if clock.seconds[name]},
        "peak_flops": peak,
    }


def flops_needed(rows: Sequence[Row], table: dict[str, list[Any]], config: Any, most_crops: int) -> dict[str, float]:
    """Floating-point operations of each phase if every image and every shared prefix is computed once."""
    from benchmarks.cost import decoder_flops, head_flops, vision_flops

    sizes_px = []
    for path in dict.fromkeys(row.image for row in rows):
        with Image.open(path) as image:
            sizes_px.append(image.size)
    prefixes = {row.image: end + 1 for row, end in zip(rows, table["vision_token_index"], strict=True)}
    pieces = [(0, length) for length in prefixes.values()]
    pieces += [
        (prefixes[row.image], length - prefixes[row.image])
        for row, length in zip(rows, table["prompt_tokens"], strict=True)
    ]
    # the last token of an answer does not go through the decoder
    lengths = zip(rows, table["prompt_tokens"], strict=True)
    decoded = [(length, row.new_tokens - 1) for row, length in lengths if row.new_tokens]
    return {
        "vision": vision_flops(config, sizes_px, most_crops),
        "prefill": decoder_flops(config, pieces),
        "decode": decoder_flops(config, decoded) + head_flops(config, sum(row.new_tokens for row in rows)),
    }


def require_lengths(task: Task, lengths: Sequence[int]) -> None:
    """Raises RuntimeError if the answers do not have the planned lengths: then the figures would not compare."""
    expected = [row.new_tokens for row in task.rows]
    if list(lengths) != expected:
        raise RuntimeError(f"{task.procedure} answered with {list(lengths)} tokens instead of {expected}.")


def main() -> None:
    """Measures the task in the first file and writes the result into the second."""
    task_path, result_path = map(Path, sys.argv[1:])
    read = json.loads(task_path.read_text())
    task = Task(**{**read, "rows": [Row(**row) for row in read["rows"]]})
    result_path.write_text(json.dumps(asdict(measure(task))))


if __name__ == "__main__":
    main()
