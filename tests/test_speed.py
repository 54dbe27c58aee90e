"""The benchmarks time what they say: the original's states, every procedure's answers, all phases of midsight."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import gpu_sections, page, sweep
from benchmarks.cost import matrix_peak, watched_memory
from benchmarks.data import ask, cross_section, distinct, stop_length, write_drawn
from benchmarks.figure import curves_svg
from benchmarks.gpu import missing_packages, problem_of
from benchmarks.measure import Measured, Task, measure, require_lengths
from benchmarks.models import random_model
from benchmarks.original import original
from benchmarks.phases import PHASES, clocked, find
from benchmarks.stopping import END_ID, StopAfter
from benchmarks.sweep import SIZES, measure_sweep
from PIL import Image
from transformers import AutoProcessor

from midsight.extraction import meter
from support.reference import load_reference_model, relative_error


@pytest.fixture
def rows(tmp_path):
    """Two questions on an image, and one on another, with short answers of two lengths."""
    return ask(write_drawn(tmp_path, [(300, 300), (300, 200)]), 2, 4)[:3]


def test_the_originals_states_are_those_of_one_full_forward(rows, checkpoint):
    model = load_reference_model(checkpoint, fixed=False, lora=False)
    processor = AutoProcessor.from_pretrained(checkpoint)
    layers = range(model.config.num_hidden_layers)
    seen = list(original(model, processor, [replace(row, new_tokens=0) for row in rows[1:]], layers))
    fresh = load_reference_model(checkpoint, fixed=False, lora=False)
    for row, one in zip(rows[1:], seen, strict=True):
        text = f"<|user|><|endoftext10|>{row.question}<|end|><|assistant|>"
        inputs = processor(text=text, images=Image.open(row.image), return_tensors="pt")
        with torch.inference_mode():
            states = fresh(**inputs, output_hidden_states=True, use_cache=False).hidden_states
        last_image = inputs["input_ids"][0].tolist()[::-1].index(200010)
        for layer in layers:
            expected = states[layer + 1][0].numpy()
            assert relative_error(one.query_token[layer], expected[-1]) <= 1e-5
            assert relative_error(one.vision_token[layer], expected[-1 - last_image]) <= 1e-5
        pixels = inputs["image_pixel_values"][0].numpy().mean(axis=(0, 1, 2))
        assert one.pooled_pixels is not None
        assert one.pooled_pixels.shape == (448,)
        np.testing.assert_allclose(one.pooled_pixels, pixels, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("procedure", ["original", "batches"])
def test_every_procedure_gives_answers_of_the_planned_lengths(procedure, rows):
    measured = measure(Task(procedure, "demo", "cpu", rows, 4))  # raises if a length differs
    assert measured.seconds > 0


@pytest.mark.slow
def test_midsight_is_measured_through_the_entry_point_of_a_process(rows, tmp_path):
    """In a process of its own: in this one, memory that other tests freed would hide the peak."""
    task, result = tmp_path / "task.json", tmp_path / "result.json"
    task.write_text(json.dumps(asdict(Task("midsight", "demo", "cpu", rows, "auto"))))
    command = [sys.executable, "-m", "benchmarks.measure", str(task), str(result)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1], capture_output=True)
    measured = Measured(**json.loads(result.read_text()))
    assert measured.seconds > 0
    assert measured.peak_bytes > 0
    assert min(measured.phases.values()) > 0
    assert sum(measured.phases.values()) == pytest.approx(1)
    assert all(0 < share < 1.5 for share in measured.peak_shares.values())
    assert measured.peak_shares.keys() == {"vision", "prefill", "decode"}
    assert [(samples, steps) for samples, _, steps, _ in measured.calls] == [(3, max(row.new_tokens for row in rows))]


def test_answers_of_other_lengths_are_an_error(rows):
    with pytest.raises(RuntimeError, match=r"midsight answered with \[1, 1, 1\] tokens"):
        require_lengths(Task("midsight", "demo", "cpu", rows, 4), [1, 1, 1])


def test_the_countdown_to_the_stop_token_continues_in_any_part_of_a_prompt():
    model, processor = random_model("demo", "cpu")
    stop = StopAfter(model, processor.tokenizer, {"Is it?": 3, "Why?": 1})
    question = processor.tokenizer("Is it?")["input_ids"]
    rest = [*question, END_ID, 200019]
    (first,) = stop._follow([200021, 200010, 200010, *rest])
    assert stop._follow([199999, *rest]) == [first]
    (second,) = stop._follow([200021, 200010, *rest, first])
    assert stop._follow([200021, 200010, *rest, first, second]) == [END_ID]
    assert END_ID not in (first, second)
    other = [*processor.tokenizer("Why?")["input_ids"], END_ID, 200019]
    assert stop._follow([*rest, *other, 199999]) == [first, END_ID], "questions after one prefix"
    assert stop._follow([first, 199999, second]) == [second, END_ID], "their next tokens"
    assert stop._follow([200021, 200010, 200010]) == [], "the prefix alone"
    with pytest.raises(KeyError):
        stop._follow([*processor.tokenizer("What?")["input_ids"], END_ID, 200019])


def test_lengths_follow_the_cut_exponential_distribution():
    lengths = np.array([stop_length(f"question {n}", 20) for n in range(4000)])
    assert (lengths.min(), lengths.max()) == (1, 20)
    assert np.mean(lengths == 20) == pytest.approx(np.exp(-1.9), abs=0.02)
    assert np.median(lengths) == 7
    assert stop_length("question 1", 20) == lengths[1]


def test_the_package_is_restored_after_timing():
    paths = [path for group in PHASES.values() for path in group]
    before = [find(path) for path in paths]
    with clocked():
        assert all(getattr(find_holders[0], name) is not function for find_holders, name, function in before)
    assert [find(path) for path in paths] == before


def test_an_inner_phase_is_not_counted_twice():
    with clocked() as clock:
        inner = clock.timed("vision", lambda: sum(range(200_000)))
        clock.timed("prefill", lambda: (inner(), inner()))()
    assert clock.seconds["vision"] > 20 * clock.seconds["prefill"] > 0


def test_the_peak_of_matrix_products_is_measured():
    assert matrix_peak("cpu", repeats=1) > 1e9


def test_the_peak_memory_is_that_of_all_calls():
    """`auto` sets the peak back before each of them."""
    size = 200 * 2**20
    with watched_memory("cpu") as peak_bytes:
        torch.ones(size // 4)
        with meter.measured(torch.device("cpu")):
            pass
        assert 0.9 * size < peak_bytes() < 1.5 * size


def test_results_replace_the_text_between_the_marks_of_the_page(tmp_path, monkeypatch):
    for name in ("PAGE", "RESULTS", "FIGURE"):
        monkeypatch.setattr(page, name, tmp_path / name.lower())
    page.PAGE.write_text(f"before\n{page.BEGIN}\nformer\n{page.END}\nafter\n")
    shares = dict.fromkeys(page.PHASES, 0.2)
    one = {
        "seconds": 8.0,
        "peak_bytes": 10**9,
        "machine": {"processor": "P", "threads": 2, "cores": 2, "memory_gb": 8, "torch": "2"},
        "phases": shares,
        "peak_shares": {"vision": 0.5, "prefill": 0.25},
        "calls": [(3, 1.0, 2, 30), (1, 1.0, 2, 10)],
        "peak_flops": 1e11,
    }
    case = {"name": "a case", "samples": 4, "samples_of_others": 2, "target": 3.0, "original": one, "batches": one}
    case |= {"midsight": {**one, "seconds": 2.0}, "ratios": [9.0, 7.5, 8.0]}
    heading = {"command": "make bench SIZE=mid", "date": "2026-01-01", "size": "mid", "device": "cpu"}
    page.replace_cases("mid-cpu", {**heading, "cases": [case, {**case, "name": "another"}]})
    page.replace_cases("mid-cpu", {**heading, "cases": [{**case, "name": "another", "ratios": [1.0]}]})
    speeds = {"auto": 3.0, "auto, later": 3.8, "1": 2.0, "2": 4.0}
    page.write_result("sweep-mid-cpu", {**heading, "cases": [{"name": "a case", "samples": 4, "speeds": speeds}]})
    points = [
        {"curve": curve, "x": x, "procedure": procedure, "seconds": x / 10, "samples": 1}
        for curve in ("questions per image", "new tokens")
        for x in (1, 20)
        for procedure in ("midsight", "original")
    ]
    page.write_result("curves-mid-cpu", {**heading, "points": points})
    page.write_page()
    text = page.PAGE.read_text()
    assert "| a case | 0.25 | 0.25 | 2 | 1.0 x | **8.0 x** (7.5 to 9.0) | 3.0 x |" in text
    assert "| another | 0.25 | 0.25 | 2 | 1.0 x | **1.0 x** (one run) | 3.0 x |" in text
    assert "| a case | 4 | 3, 1 | 20 % | 20 % | 20 % | 20 % | 20 % | 50 % | 25 % |  | 100 |" in text
    assert "| a case | 4 | 3 | 3.8 | 2 | 4 | 95 % |" in text
    assert "| new tokens: 20 | 2.000 | 2.000 |" in text
    assert (text.startswith("before\n"), text.endswith("\nafter\n"), "former" in text) == (True, True, False)
    assert page.FIGURE.read_text() == curves_svg(points)


def test_the_page_shows_the_stored_results():
    shown = page.PAGE.read_text(encoding="utf-8").split(page.BEGIN)[1].split(page.END)[0]
    assert shown.strip() == page.render().strip()


def test_distinct_images_are_distinct(tmp_path):
    assert len({Path(row.image).read_bytes() for row in distinct(tmp_path, 4, 5)}) == 4


def test_a_cross_section_has_the_sizes_and_lengths_of_all(tmp_path):
    sizes_px = [(8, 8), (16, 8), (24, 8), (32, 8)]
    rows = ask(write_drawn(tmp_path, sizes_px * 10), 1, 20)
    few = cross_section(rows, 16)
    assert len({row.question for row in few}) == 16
    assert Counter(int(Path(row.image).stem) % 4 for row in few) == dict.fromkeys(range(4), 4)
    means = [np.mean([row.new_tokens for row in some]) for some in (rows, few)]
    assert abs(means[0] - means[1]) < 1.5


def test_the_gpu_report_says_which_packages_are_missing():
    assert missing_packages() == []
    assert problem_of("no-such-package>=1.0").startswith("no-such-package is missing; install no-such-package>=1.0")
    assert problem_of("numpy>=99.1").endswith("; install numpy>=99.1.")
    assert problem_of("numpy>=1.0,<1.1").endswith("; install numpy>=1.0,<1.1.")
    assert problem_of("torch>=2.10,<2.12") == "", "a newer torch is tried"


def test_the_default_and_fixed_sizes_are_compared_by_the_same_time(rows):
    """What passes between the calls counts for none of them; nor do longer samples in later calls."""

    def made_up(task):
        fixed = [(task.batch_size, 1.0, 1, 10 * task.batch_size)]
        calls = [(1, 4.0, 1, 5), (2, 4.0, 1, 10), (4, 2.0, 1, 55)] if task.batch_size == "auto" else fixed
        return Measured(seconds=100.0, cpu_seconds=1.0, peak_bytes=1, machine={}, calls=calls)

    speeds = measure_sweep("demo", "cpu", rows, made_up)["speeds"]
    assert speeds == {"auto": 0.7, "auto, later": 2.75, **{str(size): float(size) for size in SIZES}}


def test_fixed_sizes_get_fewer_samples_unless_they_take_whole_images(monkeypatch, rows):
    taken = {}

    def made_up(task):
        taken[task.batch_size] = len(task.rows)
        return Measured(seconds=1.0, cpu_seconds=1.0, peak_bytes=1, machine={}, calls=[(1, 1.0, 1, 1)])

    monkeypatch.setattr(sweep, "cross_section", lambda rows, count: rows[:count])
    many = [replace(rows[0], image=f"{n}.png") for n in range(120)]
    measure_sweep("demo", "cpu", many, made_up)
    assert taken == {"auto": 120, 1: 24, 2: 24, 4: 24, 8: 24, 16: 32, 32: 64, 64: 120, 128: 120}
    measure_sweep("demo", "cpu", [replace(row, image=f"{n // 5}.png") for n, row in enumerate(many)], made_up)
    assert taken == {"auto": 120, 1: 25, 2: 25, 4: 25, 8: 120, 16: 120, 32: 120, 64: 120, 128: 120}


@pytest.mark.slow
def test_the_gpu_report_is_made_on_a_cpu_too(tmp_path, monkeypatch):
    """The same code with the small checkpoint, fewer samples and two sections of the proof."""
    monkeypatch.setattr(gpu_sections, "SECTIONS", {name: gpu_sections.SECTIONS[name] for name in ("states", "answers")})
    few = {"counts": {"cpu": 2}, "counts_of_original": {"cpu": 1}, "new_tokens": 3}
    monkeypatch.setattr(gpu_sections, "SPEEDS", [replace(speed, **few) for speed in gpu_sections.SPEEDS[:2]])
    report = gpu_sections.measure_all("demo", "cpu", tmp_path, seconds_left=lambda: 1.0)
    sections = report["sections"]
    assert not [one["left_out"] for one in sections.values() if "left_out" in one]
    assert all(check["passed"] for check in sections["proof"]["checks"])
    assert 0 <= sections["parity"]["midsight"] <= 1e-5
    assert sections["out of memory"]["failed"] == []
    assert sections["out of memory"]["calls"] == [8, 4, 2, 2, 4, 2, 2]
    text = (tmp_path / "gpu-cpu.md").read_text()
    assert "checks passed." in text
    assert "| distinct images, 20 new tokens |" in text
    assert json.loads((tmp_path / "gpu-cpu.json").read_text())["sections"].keys() == sections.keys()


def test_a_section_without_time_or_with_an_error_is_named():
    assert gpu_sections.measured_section(dict, lambda: 0.0) == {"left_out": "there was no time left"}
    assert "ZeroDivisionError" in gpu_sections.measured_section(lambda: {"x": 1 // 0}, lambda: 1.0)["left_out"]
