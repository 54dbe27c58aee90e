"""Extractions into a bucket: killed, over a network that fails, by two writers, and with a sample that aborts."""

from __future__ import annotations

import itertools
import platform
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from faults.bucket import LEASE_S, Bucket, bucket, run_of
from faults.command import Ended, wait_for
from faults.content import Content, content_of, require_complete, require_part_of, require_sound
from faults.deaths import finished
from faults.experiment import Experiment, Outcome, attempts, require, scratch
from faults.made_up_model import Behaviour, write_dataset
from faults.on_ray import Whole, by_one_process, require_done, require_same
from midsight.buckets.path import BucketPath
from midsight.store import open_run
from midsight.store.attempts import read_suspicions

GROUP = "Into a bucket"
SAMPLES = 20
SAMPLES_OF_A_KILL = 40
"""With ten kills they are 400."""
KINDS = ("500", "503", "reset", "lost", "half", "timeout", "skewed")
LASTING = (1, 2, 1_000_000)
"""Requests in a row that fail: one is repeated, two are too many, and then there is the end of the process."""
CLOCK_S = 3600
"""What the clock of a machine is off by."""
MOST_WRITES = 4
"""Fewer parts and records than these are written by a process before it is killed, and what a second brings."""


def made_up_call(data: Path) -> list[Any]:
    """An extraction by the made-up model that commits after every image."""
    return ["extract", data, "--model", "made-up", "--commit-seconds", "0"]


@contextmanager
def dataset_and_run() -> Iterator[tuple[Path, Content]]:
    """A dataset for the made-up model, and what its run in a folder holds."""
    with scratch() as place:
        data = write_dataset(place / "data", SAMPLES, missing=None)
        yield data, finished(data, place / "run", place / "output", Behaviour())


def killed_and_resumed(count: int, seed: int) -> Outcome:
    """Kills one extraction by a random checkpoint `count` times, then lets it finish."""
    with by_one_process(SAMPLES_OF_A_KILL * count) as whole, bucket(of_moto=True) as store:
        outcome = attempts(1, seed, partial(kill_again_and_again, whole, store, count))
    return Outcome(count, count * outcome.passed, outcome.note)


def kill_again_and_again(
    whole: Whole, store: Bucket, kills: int, folder: Path, random: np.random.Generator, number: int
) -> Mapping[str, int]:
    """Kills the command at a random write of its own, again and again; every start resumes what is there."""
    run, output = run_of(folder), folder / "output"
    counted: Counter[str] = Counter()
    in_work: set[str] = set()
    for _ in range(kills):
        target = store.writes(run, "parts") + int(random.integers(1, MOST_WRITES))
        process = store.start(whole.call, run, output)
        while process.is_alive() and store.writes(run, "parts") < target:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 1))
        counted["kills"] += process.is_alive()
        process.kill()
        wait_for(process, output)
        in_work |= {*read_suspicions(run, (0, 1)).alone_deaths}
        if (run / "run.json").exists():
            counted["rows found after them"] += len(open_run(run))
            require_sound(run)
    require_done(wait_for(store.start(whole.call, run, output), output))
    require_same(run, whole.run)
    counted["rows of other calls"] = len(in_work)
    require_same_bits(run, whole.run, other_calls=in_work)
    return counted


def require_same_bits(run: BucketPath, whole: Path, *, other_calls: set[str]) -> None:
    """Requires equal vectors, bit for bit, of all samples that were in no other calls of the model."""
    one, expected = open_run(run), open_run(whole)
    ids = np.array(one.sample_ids())
    for name in expected.vector_columns:
        differs = {*ids[(one.matrix(name) != expected.matrix(name)).any(axis=1)].tolist()}
        require(differs <= other_calls, f"{name} of {sorted(differs - other_calls)[:3]} has other bits")


def over_a_broken_network(count: int, seed: int) -> Outcome:
    """A fault begins at a random request: the command is done, or ends with 3 and the next one completes the run."""
    with dataset_and_run() as (data, whole), bucket() as store, scratch() as place:
        store.door.requests.clear()
        undisturbed = store.start(made_up_call(data), run_of(place), place / "output", behaviour=Behaviour())
        require_done(wait_for(undisturbed, place / "output"))
        usual = len(store.door.requests)

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run, clock_s = run_of(folder), CLOCK_S * int(random.integers(-1, 2))
            first, lasts = int(random.integers(usual)), int(random.choice(LASTING))
            seen = itertools.count()
            kind = KINDS[number % len(KINDS)]
            store.door.fault = lambda _: kind if first <= next(seen) < first + lasts else None
            ended = extract(store, data, run, folder / "output", clock_s)
            store.door.fault = lambda _: None
            case = f"{kind}, {lasts} from request {first} of {usual}"
            require(ended.exit_code in (0, 3), f"{case}: it ends with {ended.exit_code}: {ended.output}")
            is_told = "same command" in ended.output
            require(ended.exit_code == 0 or is_told, f"{case}: it does not say how to resume: {ended.output}")
            if kind == "skewed" and ended.exit_code == 3:
                require("the clock of this machine" in ended.output, f"{case}: it does not name the clock")
            require_part_of(run, whole)
            require_sound(run)
            again = extract(store, data, run, folder / "output", -clock_s)
            require(again.exit_code == 0, f"{case}: started again it ends with {again.exit_code}: {again.output}")
            require_complete(run, whole)
            return {"done": int(ended.exit_code == 0), "resumed": int(ended.exit_code == 3)}

        return attempts(count, seed, attempt)


def extract(store: Bucket, data: Path, run: BucketPath, output: Path, clock_s: int) -> Ended:
    """Runs an extraction by the made-up model to its end."""
    process = store.start(made_up_call(data), run, output, behaviour=Behaviour(), clock_s=clock_s)
    return wait_for(process, output)


def two_writers(count: int, seed: int) -> Outcome:
    """Another process with another clock is refused and told who writes; the first one completes the run."""
    with dataset_and_run() as (data, whole), bucket() as store:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            run, call, go = run_of(folder), made_up_call(data), folder / "go"
            held = Behaviour(waits_for=go)
            first = store.start(call, run, folder / "output", behaviour=held, clock_s=CLOCK_S)
            while first.is_alive() and not store.writes(run, "locks/0-of-1.working"):
                time.sleep(0.01)
            time.sleep(random.uniform(0, LEASE_S))
            second = store.start(call, run, folder / "refused", behaviour=Behaviour(), clock_s=-CLOCK_S)
            refused = wait_for(second, folder / "refused")
            go.touch()
            sentence = (
                rf"Error: The shard 0-of-1 of {re.escape(str(run))} is being written by process {first.pid} on "
                rf"{re.escape(platform.node())} since 2\S+; wait until it ends, or stop it: {LEASE_S:g} seconds later"
            )
            require(refused.exit_code == 2, f"the second process ends with {refused.exit_code}: {refused.output}")
            require(re.search(sentence, refused.output) is not None, f"it says {refused.output}")
            require_done(wait_for(first, folder / "output"))
            require_complete(run, whole)
            return {"refused": 1}

        return attempts(count, seed, attempt)


def deadly_sample(count: int, seed: int) -> Outcome:
    """One sample ends every worker that works on it; the supervisor starts another, and the sample is set aside."""
    with dataset_and_run() as (data, whole), bucket() as store:

        def attempt(folder: Path, random: np.random.Generator, number: int) -> Mapping[str, int]:
            deadly, run = f"q{random.integers(SAMPLES)}", run_of(folder)
            killing = Behaviour(as_on_gpu=True, deadly=deadly)
            done = wait_for(
                store.start(made_up_call(data), run, folder / "output", behaviour=killing), folder / "output"
            )
            require(done.exit_code == 1, f"it ends with {done.exit_code}: {done.output}")
            content = content_of(run)
            require([*content.failures] == [deadly], f"{deadly} kills, and failed are {[*content.failures]}")
            others = {sample_id: row for sample_id, row in whole.rows.items() if sample_id != deadly}
            require(content.rows == others, "the other rows differ from those of an undisturbed run")
            return {"workers that died": done.output.count("it is started again")}

        return attempts(count, seed, attempt)


EXPERIMENTS = (
    Experiment(
        GROUP, "a random checkpoint, 40 samples for each kill, killed at random writes", killed_and_resumed, 10, 1
    ),
    Experiment(
        GROUP,
        "errors 500 and 503, connections cut before or after a write, half answers, none, a clock that is refused; "
        "clocks off by an hour",
        over_a_broken_network,
        50,
        4,
    ),
    Experiment(GROUP, "another start while the run is written, their clocks two hours apart", two_writers, 5, 1),
    Experiment(GROUP, "one sample aborts, as on a GPU, where a supervisor watches", deadly_sample, 5, 1),
)
