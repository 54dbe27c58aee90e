"""The command, as a user calls it: output, exit codes, stopping and going on."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import midsight
from midsight.cli import app
from pictures import encoded, picture

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""A shell that runs the tests in the background lets all they start ignore SIGINT."""
MIDSIGHT = [sys.executable, "-c", f"{LISTEN}; from midsight.cli import main; main()"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Sixteen images with two questions each: enough commits to be stopped between, three times."""
    folder = tmp_path_factory.mktemp("cli")
    for i in range(16):
        (folder / f"{i}.png").write_bytes(encoded(picture((64, 48 + i), i)))
    rows = [{"image": f"{n % 16}.png", "question": f"What is number {n}?"} for n in range(32)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def extract(checkpoint, dataset, out, *more):
    return call(
        "extract",
        dataset / "data.jsonl",
        "--model",
        checkpoint,
        "--out",
        out,
        "--device",
        "cpu",
        "--layers",
        "0,-1",
        *more,
    )


LONG = "x" * 300
"""A name that no disk takes."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", LONG), ("verify", LONG), ("compact", LONG), ("check", LONG), ("models", LONG),
        ("export", LONG, "--format", "csv", "--out", "a.csv"),
        ("extract", "DATA", "--model", LONG, "--out", "run"),
        ("extract", "DATA", "--model", "MODEL", "--out", LONG),
        ("extract", "DATA", "--model", "MODEL", "--out", LONG, "--plan"),
        ("extract", "DATA", "--model", "MODEL", "--out", f"run/{LONG}"),
        ("extract", "DATA", "--model", "MODEL", "--out", "DATA"),
        ("extract", "DATA", "--model", "MODEL", "--out", "run", "--images", LONG),
        ("extract", LONG, "--model", "MODEL", "--out", "run"),
        ("extract", LONG, "--model", "MODEL", "--out", "run", "--question", "What?"),
    ],
)  # fmt: skip
def test_a_path_that_cannot_be_is_one_sentence(arguments, checkpoint, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = {"DATA": dataset / "data.jsonl", "MODEL": checkpoint}
    refused = call(*(real.get(argument, argument) for argument in arguments))
    assert refused.exit_code == 2
    *_, sentence = refused.output.splitlines()
    assert re.search(r"^Error: .*(File name too long|Not a directory)", sentence), refused.output
    assert not list(tmp_path.rglob("run.json"))


def test_a_folder_of_parts_that_cannot_be_listed_is_not_taken_for_an_empty_one(checkpoint, dataset, tmp_path):
    extract(checkpoint, dataset, tmp_path / "run", "--limit", 1, "--max-new-tokens", 1)
    (tmp_path / "run" / "parts").rename(tmp_path / "parts")
    (tmp_path / "run" / "parts").write_text("no folder")
    for command in ("show", "verify", "compact"):
        refused = call(command, tmp_path / "run")
        assert refused.exit_code == 2, refused.output
        assert "run/parts cannot be read: Not a directory; check the name, the disk" in refused.output


def test_extract_then_show(checkpoint, dataset, tmp_path):
    done = extract(checkpoint, dataset, tmp_path / "run", "--limit", 4, "--max-new-tokens", 2)
    assert done.exit_code == 0, done.output
    assert "4 samples stored, 0 failed" in done.output
    assert "attention made bidirectional in 4 layers" in done.output
    shown = call("show", tmp_path / "run")
    assert shown.exit_code == 0
    for text in ("4 stored, 0 failed", "query_token_representation.layer_7", "vision_only_representation"):
        assert text in shown.output


def test_every_option_reaches_the_extraction(checkpoint, dataset, tmp_path):
    done = extract(
        checkpoint, dataset, tmp_path / "run", "--limit", 2, "--residual", "--positions", "image_mean,query_token",
        "--vision", "none", "--processor-pooled-pixels", "--pixels", "transformers", "--prompt", "{question} Be brief.",
        "--system", "Look.", "--no-answers", "--batch-size", 1, "--dtype", "bfloat16", "--store-dtype", "float16",
        "--lora", "off", "--image-column", "image", "--question-column", "question", "--images", dataset,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = midsight.open_run(tmp_path / "run")
    positions = ("query_token", "image_mean")
    layers = ("0", "7", "7_residual")
    assert set(run.vector_columns) == {
        "processor_pooled_pixels",
        *(f"{position}_representation.layer_{layer}" for position in positions for layer in layers),
    }
    options = run.spec.options
    assert options["--dtype"] == "bfloat16"
    assert options["--pixels"] == "transformers"
    assert run.spec.model["lora"] == "off"
    assert run.spec.store_dtype == "float16"
    assert run.spec.prompt["rendered"].startswith("<|system|>Look.<|end|><|user|><|endoftext10|>What is number 0? Be")
    assert "answer" not in run.columns


def test_failed_samples_exit_with_1_and_are_listed(checkpoint, dataset, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"id": "lost", "image": "lost.png", "question": "Where?"}\n')
    done = extract(checkpoint, tmp_path, tmp_path / "run")
    assert done.exit_code == 1
    assert "0 samples stored, 1 failed" in done.output
    listed = call("show", tmp_path / "run", "--failures")
    assert re.search(r"lost\t.*lost\.png", listed.output)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--layers", "0,8"], "The model has no layer 8; its layers are 0 to 7."),
        (["--positions", "middle"], "'middle'"),
        (["--prompt", "Say yes."], "{question} exactly once"),
        (["--prompt", "<|image_1|>{question}"], "control token '<|image_1|>'"),
        (["--system", "<|end|>"], "--system contains the control token '<|end|>'"),
        (["--pixels", "cv2"], "--pixels 'cv2'"),
        (["--vision", "max"], "--vision 'max'"),
        (["--dtype", "int8"], "--dtype 'int8'"),
        (["--device", "quantum"], "--device 'quantum'"),
        (["--lora", "maybe"], "--lora 'maybe'"),
        (["--store-dtype", "float8"], "--store-dtype 'float8'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--question-column", "frage"], "frage"),
        (["--id-column", "nummer"], "nummer"),
        (["--model", "/nowhere"], "/nowhere is no folder"),
    ],
)
def test_wrong_calls_exit_with_2_and_one_sentence(checkpoint, dataset, tmp_path, more, sentence):
    done = extract(checkpoint, dataset, tmp_path / "run", *more)
    assert done.exit_code == 2
    assert sentence in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def test_an_option_that_differs_from_the_runs_exits_with_2(checkpoint, dataset, tmp_path):
    assert extract(checkpoint, dataset, tmp_path / "run", "--limit", 1, "--no-answers").exit_code == 0
    refused = extract(checkpoint, dataset, tmp_path / "run", "--limit", 1, "--no-answers", "--residual")
    assert refused.exit_code == 2
    assert "--residual" in refused.output


def test_repeated_ids_and_missing_columns_exit_with_2(checkpoint, tmp_path):
    rows = '{"id": 1, "image": "a.png", "question": "?"}\n' * 2
    (tmp_path / "data.jsonl").write_text(rows)
    repeated = extract(checkpoint, tmp_path, tmp_path / "run")
    assert (repeated.exit_code, "repeat" in repeated.output or "twice" in repeated.output) == (2, True)
    (tmp_path / "data.csv").write_text("picture,question\na.png,What?\n")
    missing = call("extract", tmp_path / "data.csv", "--model", checkpoint, "--out", tmp_path / "run")
    assert missing.exit_code == 2
    assert "picture" in missing.output


def test_debug_shows_the_traceback(tmp_path):
    plain, debug = call("show", tmp_path), call("show", tmp_path, "--debug")
    assert plain.exit_code == debug.exit_code == 2
    assert "Traceback" in debug.output
    assert "Traceback" not in plain.output


def test_version_and_help():
    assert midsight.__version__ in call("--version").output
    assert "extract" in call("--help").output
    assert call("extract", "--help").exit_code == 0


def resumable(checkpoint, dataset, out):
    """A command that commits after every image, so that stops fall between commits on machines of any speed."""
    arguments = ["extract", dataset / "data.jsonl", "--model", checkpoint, "--out", out, "--device", "cpu"]
    options = ["--layers", "0,7", "--max-new-tokens", "4", "--batch-size", "2", "--commit-seconds", "0"]
    return [*map(str, arguments), *options]


def start(checkpoint, dataset, out):
    command = [*MIDSIGHT, *resumable(checkpoint, dataset, out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def committed(out):
    return len(list((out / "parts").glob("*.json"))) if (out / "parts").exists() else 0


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    done = call(*resumable(checkpoint, dataset, out))
    assert done.exit_code == 0, done.output
    return midsight.open_run(out)


@pytest.mark.slow
@pytest.mark.parametrize(("kill", "times"), [(signal.SIGKILL, 3), (signal.SIGINT, 1), (signal.SIGTERM, 1)])
def test_stopped_and_started_again_no_sample_is_lost_or_doubled(
    checkpoint, dataset, tmp_path, uninterrupted, kill, times
):
    out = tmp_path / "run"
    for _ in range(times):
        before = committed(out)
        process = start(checkpoint, dataset, out)
        while process.poll() is None and committed(out) < before + 2:
            time.sleep(0.02)
        process.send_signal(kill)
        output, _ = process.communicate()
        if kill == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL, output
        else:
            assert process.returncode == 3, output
            assert "goes on from there" in output
        assert before < len(midsight.open_run(out)) < len(uninterrupted)
        assert set(midsight.open_run(out).sample_ids()) <= set(uninterrupted.sample_ids())
    resumed = call(*resumable(checkpoint, dataset, out))
    assert resumed.exit_code == 0, resumed.output
    run = midsight.open_run(out)
    assert run.sample_ids() == uninterrupted.sample_ids()
    assert run.table()["answer_token_ids"] == uninterrupted.table()["answer_token_ids"]
    for name in run.vector_columns:
        assert np.allclose(run.matrix(name), uninterrupted.matrix(name), rtol=0, atol=1e-4)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_the_demo_checkpoint_is_written_on_request(tmp_path):
    done = call("demo", "--checkpoint-only", tmp_path / "model")
    assert done.exit_code == 0
    assert "untrained" in done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()
