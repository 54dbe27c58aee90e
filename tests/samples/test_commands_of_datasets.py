"""The command of each benchmark in docs/datasets.md, run as a dry run on files in the benchmark's shape."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from midsight.checkpoints.loading import load_model
from midsight.cli import app
from midsight.extraction import job
from midsight.reports.terminal import in_one_line
from support import benchmark_files as benchmarks
from support.prompting import prompts

TABLE = (
    (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8").partition("\n## Benchmarks\n")[2]
)
ROWS = dict(re.findall(r"^\| ([^|`]+) \| `([^`]+)`", TABLE.partition("\n## ")[0], re.MULTILINE))
WRITERS = {
    "POPE": benchmarks.pope,
    "MME": benchmarks.mme,
    "AMBER": benchmarks.amber,
    "HallusionBench": benchmarks.hallusionbench,
    "HaloQuest": benchmarks.haloquest,
    "MMMU": benchmarks.mmmu,
    "MathVista": benchmarks.mathvista,
    "ScienceQA": benchmarks.scienceqa,
    "TextVQA": benchmarks.textvqa,
    "VQAv2, OK-VQA": benchmarks.vqav2,
    "GQA": benchmarks.gqa,
    "LLaVA mix": benchmarks.llava_mix,
    "MMBench and others of VLMEvalKit": benchmarks.vlmevalkit,
    "ChartQA": benchmarks.chartqa,
    "DocVQA": benchmarks.docvqa,
    "A-OKVQA": benchmarks.a_okvqa,
    "VizWiz": benchmarks.vizwiz,
    "MM-Vet": benchmarks.mm_vet,
    "SEED-Bench": benchmarks.seed_bench,
}


@pytest.fixture(scope="module")
def without_weights(checkpoint):
    return load_model(checkpoint, weights=False, device="cpu")


def test_every_benchmark_of_the_page_has_its_files_here():
    assert {*ROWS} == {*WRITERS}


def test_a_dry_run_says_which_rows_cannot_be_extracted(checkpoint, without_weights, tmp_path, monkeypatch):
    monkeypatch.setattr("midsight.checkpoints.loading.load_model", lambda *_, **__: without_weights)
    questions = ["<image><image> Same?", "What?", "", "<|im_start|>user"]
    rows = [{"image": str(tmp_path / "a.png"), "question": question} for question in questions]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = [
        "extract",
        str(tmp_path / "a.jsonl"),
        "--model",
        str(checkpoint),
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    done = CliRunner().invoke(app, words)
    assert "The first prompt: <|user|><|endoftext10|>What?<|end|><|assistant|>" in done.output
    assert re.search(r"^3 rows cannot be extracted: .*\(1 of 3 is like this\)\.$", done.output, re.MULTILINE)


@pytest.mark.parametrize("name", ROWS)
def test_the_command_of_the_page_makes_the_prompts(name, checkpoint, without_weights, tmp_path, monkeypatch):
    WRITERS[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("midsight.checkpoints.loading.load_model", lambda *_, **__: without_weights)
    jobs, look_ahead = [], job.look_ahead
    monkeypatch.setattr(job, "look_ahead", lambda made: (jobs.append(made), look_ahead(made))[1])
    words = ["extract", *shlex.split(ROWS[name]), "--model", str(checkpoint), "--out", "run", "--dry-run"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    expected = benchmarks.PROMPTS[WRITERS[name]]
    task = jobs[0].task
    assert (task.data.failures, prompts(task.data, task.request.prompt)) == ((), expected)
    assert "not exist" not in done.output
    assert f"{len(expected)} sample{'s' if len(expected) > 1 else ''} on 1 image" in done.output.replace(
        "2 images", "1 image"
    )
    shown = re.search(r"^The first prompt: (.*)$", done.output, re.MULTILINE)
    assert shown is not None
    declaration = without_weights.family.prompt
    assert in_one_line(expected[0].replace("#", declaration.image_markup)) in shown[1]
    assert not (tmp_path / "run").exists()
