"""Packed samples are equal to the originals, and take little memory."""

import json
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from midsight.samples.packed import PackedSamples, keys_of
from midsight.samples.sample import Sample
from midsight.samples.tables import read_table

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
SAMPLES = st.builds(
    Sample,
    sample_id=st.text(st.characters(codec=None)),
    input_index=st.integers(0, 2**62),
    images=st.sampled_from([(), (Path("a.png"),), (Path("a.png"), b"bytes")]),
    question=st.text(st.characters(codec=None)),
    image=st.text(),
    reference_answers=st.lists(st.text()).map(tuple),
    extras=st.dictionaries(st.text(), VALUES, max_size=3),
)


def packed(samples: list[Sample]) -> PackedSamples:
    result = PackedSamples()
    for sample in samples:
        result.append(sample)
    return result


@example([Sample("\ud800\n", 0, (b"",), "\udfff ü", extras={"x": -0.0, "y": [10**40, float("inf")]})])
@given(st.lists(SAMPLES, max_size=5))
def test_unpacked_samples_equal_the_originals(samples):
    result = packed(samples)
    assert list(result) == list(map(result.__getitem__, range(len(samples)))) == samples
    assert result[::-1] == tuple(samples[::-1])
    assert str(list(result)) == str(samples), "equal, and of the same types"
    assert (
        list(keys_of(result))
        == list(keys_of(samples))
        == [(sample.sample_id, sample.input_index, sample.image_key) for sample in samples]
    )
    for mine, its in zip(result, samples, strict=True):
        pairs = zip(mine.images, its.images, strict=True)
        assert all(image is same or isinstance(image, Path) for image, same in pairs), "only paths are made anew"


def test_packed_samples_are_equal_if_their_samples_are():
    one, other = Sample("a", 0, (b"",), "?"), Sample("b", 1, (b"",), "?")
    assert packed([one, other]) == packed([one, other]) == (one, other)
    assert packed([one, other]) != packed([other, one])
    assert packed([one]) != packed([one, other])
    assert packed([one]) != "a"


def memory_of(path: Path) -> tuple[int, int, int]:
    """Rows of a table, the bytes it holds, and the most that reading it took."""
    read_table(path)  # what is imported, cached and interned once
    tracemalloc.start()
    dataset = read_table(path)
    held, most = tracemalloc.get_traced_memory()
    return len(dataset.samples), held, most


@pytest.mark.slow
def test_a_row_takes_few_bytes_of_memory(tmp_path):
    rows, questions_of_an_image = 20_000, 10
    with (tmp_path / "a.jsonl").open("w") as file:
        for n in range(rows):
            row = {"id": f"sample-{n}", "image": f"{n // questions_of_an_image}.png", "question": f"What is in {n}?"}
            file.write(json.dumps({**row, "source": "web", "level": n / 7}) + "\n")
    with ProcessPoolExecutor(1, get_context("spawn")) as new_process:  # threads of other tests would be counted, too
        read, held, most = new_process.submit(memory_of, tmp_path / "a.jsonl").result()
    assert read == rows
    assert held / rows < 250
    assert most / rows < 350
