import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import settings

from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.once import checkpoint_of_the_run

collect_ignore_glob = ["conftest.py", "*/conftest.py"]
"""Doctests are looked for in every other file; two of the same name cannot be collected."""
FAILED = pytest.StashKey[list[str]]()
LONGEST_FILES = (
    "faults/test_faults.py", "families/test_family_parity.py", "check/test_proof.py", "demo/test_seeing.py",
    "demo/test_training.py", "store/test_store_compact.py", "test_cli.py", "families/test_family_damage.py",
    "families/test_family_prompts.py", "store/test_store_exports.py", "checkpoints/test_hub.py",
    "families/test_device_map.py", "check/test_breakages.py", "test_speed.py", "families/test_adapters.py",
)  # fmt: skip
"""The files that take longest, the longest first."""

settings.register_profile("without a clock", deadline=None)  # a busy machine must not make a test fail
settings.load_profile("without a clock")


def pytest_collection_modifyitems(items):
    """The longest files come first: no process waits at the end for another one that began a long file late."""
    tests = Path(__file__).parent
    rank = {tests / name: number for number, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_terminal_summary(terminalreporter, config):
    """Keeps what failed, for the last line."""
    stats = terminalreporter.stats
    config.stash[FAILED] = [report.nodeid for kind in ("failed", "error") for report in stats.get(kind, ())]


def pytest_unconfigure(config):
    """The last thing that a failing run prints is the command that repeats what failed."""
    failed = dict.fromkeys(config.stash.get(FAILED, []))
    if failed:
        names = " ".join(shlex.quote(name) for name in failed)
        sys.stdout.write(f"\nRepeat what failed with:\nOMP_NUM_THREADS=1 .venv/bin/python -m pytest {names}\n")


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    """A folder for what is made once in this run of the suite, by all its processes together."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "once"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def checkpoint(run_folder):
    """Folder of the demo checkpoint, longrope threshold 4096 as published."""
    return checkpoint_of_the_run(run_folder, write_phi4_multimodal)


@pytest.fixture(scope="session")
def model(checkpoint):
    """The demo checkpoint, loaded as users load it."""
    from midsight import load

    return load(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def reference(checkpoint):
    """transformers' own procedure on the same folder, its vision tower fixed."""
    from support.reference import Reference

    return Reference(checkpoint, keep=True)


@pytest.fixture
def no_waiting(monkeypatch):
    """A shard that another process writes is refused at once."""
    from midsight.store import lock

    monkeypatch.setattr(lock, "SHARD_WAIT_S", 0.0)


@pytest.fixture
def no_halves(monkeypatch):
    """A call that raises is not halved down to single samples, whose numbers are right."""
    from midsight.extraction import extract_call

    monkeypatch.setattr(extract_call, "isolate_failures", lambda call, extract, *_: extract(call))


@pytest.fixture
def together_fails(monkeypatch):
    """Calls of several samples raise; the same samples alone do not."""
    from midsight.extraction import extract_call

    whole = extract_call.extract_call

    def only_alone(loaded, request, call, side):
        if len(call.items) > 1:
            raise ValueError("a shape")
        return whole(loaded, request, call, side)

    monkeypatch.setattr(extract_call, "extract_call", only_alone)


@pytest.fixture
def rows_together(monkeypatch):
    """All rows of a call go through the decoder together, as they do on a GPU."""
    from midsight.extraction import prefill

    monkeypatch.setattr(prefill, "SLICE_TOKENS", 10**6)
