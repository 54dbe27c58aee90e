"""The command as a user calls it: output, exit codes, errors, stopping and resuming."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

import midsight
from faults import command as commands
from midsight.cli import app
from midsight.errors import MidsightError, RunError
from support.pictures import encoded, picture

LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
"""Processes that a background shell starts ignore SIGINT by default."""
MIDSIGHT = [sys.executable, "-c", f"{LISTEN}; from midsight.cli import main; main()"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Sixteen images with two questions each: enough commits for three stops in between."""
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
"""A file name that is too long for every disk."""


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", LONG), ("verify", LONG), ("compact", LONG), ("check", LONG), ("models", LONG),
        ("export", LONG, "--format", "csv", "--out", "a.csv"),
        ("report", LONG, "--out", "a.html"),
        ("extract", "DATA", "--model", LONG, "--out", "run"),
        ("extract", "DATA", "--model", "MODEL", "--out", LONG),
        ("extract", "DATA", "--model", "MODEL", "--out", LONG, "--dry-run"),
        ("extract", "DATA", "--model", "MODEL", "--out", f"run/{LONG}"),
        ("extract", "DATA", "--model", "MODEL", "--out", "DATA"),
        ("extract", "DATA", "--model", "MODEL", "--out", "run", "--images", LONG),
        ("extract", LONG, "--model", "MODEL", "--out", "run"),
        ("extract", LONG, "--model", "MODEL", "--out", "run", "--question", "What?"),
    ],
)  # fmt: skip
def test_an_impossible_path_gives_one_sentence(arguments, checkpoint, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = {"DATA": dataset / "data.jsonl", "MODEL": checkpoint}
    refused = call(*(real.get(argument, argument) for argument in arguments))
    assert refused.exit_code == 2
    *_, sentence = refused.output.splitlines()
    assert re.search(r"^Error: .*(File name too long|Not a directory|a run is a folder)", sentence), refused.output
    assert not list(tmp_path.rglob("run.json"))


def test_a_parts_folder_that_cannot_be_listed_does_not_count_as_empty(checkpoint, dataset, tmp_path):
    extract(checkpoint, dataset, tmp_path / "run", "--limit", 1, "--max-new-tokens", 1)
    (tmp_path / "run" / "parts").rename(tmp_path / "parts")
    (tmp_path / "run" / "parts").write_text("not a folder")
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


def test_input_columns_that_get_another_name_are_said_once(checkpoint, tmp_path):
    (tmp_path / "data.csv").write_text("image,question,Finish_Reason,year,QUESTION\na.png,What?,yes,2020,What?\n")
    planned = call("extract", tmp_path / "data.csv", "--model", checkpoint, "--out", tmp_path / "run", "--dry-run")
    renamed = "Finish_Reason as input.Finish_Reason, QUESTION as input.QUESTION"
    said = f"Note: input columns stored under another name: {renamed}."
    assert planned.output.splitlines().count(said) == 1, planned.output


def test_every_option_reaches_the_extraction(checkpoint, dataset, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text((checkpoint / "chat_template.jinja").read_text())
    done = extract(
        checkpoint, dataset, tmp_path / "run", "--limit", 2, "--residual", "--positions", "image_mean,query_token",
        "--vision", "none", "--processor-pooled-pixels", "--pixels", "transformers", "--prompt", "{question} Be brief.",
        "--system", "Look.", "--no-answers", "--batch-size", 1, "--dtype", "bfloat16", "--store-dtype", "float16",
        "--lora", "off", "--image-column", "image", "--question-column", "question", "--images", dataset,
        "--prompt-template", template, "--no-share",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = midsight.open_run(tmp_path / "run")
    positions = ("query_token", "image_mean")
    layers = ("0", "7", "7_residual")
    assert set(run.vector_columns) == {
        "processor_pooled_pixels",
        *(f"{position}_representation.layer_{layer}" for position in positions for layer in layers),
    }
    spec = run.spec
    assert spec.model.dtype == "bfloat16"
    assert spec.model.lora == "off"
    assert (spec.request.pixels, spec.request.store_dtype, spec.request.share) == ("transformers", "float16", False)
    assert (spec.request.vision, spec.request.answers, spec.request.max_new_tokens) == ("none", False, None)
    assert (spec.prompt.template, spec.prompt.user) == (str(template), "{question} Be brief.")
    assert spec.prompt.system == "Look."
    assert str(spec.prompt.rendered).startswith("<|system|>Look.<|end|><|user|><|endoftext10|>What is number 0? Be")
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
        (["--layers", "0,8"], "--layers contains 8, and the model has the layers 0 to 7; give one of them."),
        (
            ["--layers", "first"],
            "--layers contains 'first', which is not a number; give default, all, or numbers like 0,8,16.",
        ),
        (
            ["--positions", "middle"],
            "--positions contains 'middle'; choose from vision_token, query_token, image_mean.",
        ),
        (["--prompt", "Say yes."], "--prompt is 'Say yes.'; it has to contain {question} exactly once."),
        (["--prompt", "<|image_1|>{question}"], "--prompt contains the control token '<|image_1|>'"),
        (["--system", "<|end|>"], "--system contains the control token '<|end|>'"),
        (["--prompt-template", "nowhere.jinja"], "--prompt-template is 'nowhere.jinja', which cannot be read"),
        (["--pixels", "cv2"], "--pixels is 'cv2'; give pil or transformers."),
        (["--vision", "max"], "--vision is 'max'; give mean or none."),
        (["--dtype", "int8"], "--dtype int8 is unknown; give auto, float32, bfloat16 or float16."),
        (["--device", "quantum"], "--device quantum is unknown; give auto, cpu, mps, cuda or cuda:N."),
        (["--lora", "maybe"], "--lora maybe is unknown; give auto"),
        (["--store-dtype", "float8"], "--store-dtype is 'float8'; give float32 or float16."),
        (["--batch-size", "0"], "--batch-size is 0; give auto, or 1 or more."),
        (["--batch-size", "many"], "--batch-size is many; give auto, or 1 or more."),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; give 1 or more, or --no-answers."),
        (["--limit", "0"], "--limit is 0; give 1 or more."),
        (["--shard", "4/4"], "--shard 4/4 does not exist; N shards have the numbers 0 to N-1."),
        (["--shard", "first"], "--shard first is not a share of a dataset; write I/N, like 0/4 for the first of four."),
        (["--split", "test"], "has no splits; leave --split test out."),
        (
            ["--question-column", "frage"],
            "has no column 'frage'; it has 'image', 'question': choose one with --question-column.",
        ),
        (["--id-column", "nummer"], "has no column 'nummer'; it has 'image', 'question': choose one with --id-column."),
        (["--model", "/nowhere"], "/nowhere is neither a folder nor a hub id like owner/name; give one of them."),
    ],
)
def test_wrong_calls_exit_with_2_and_one_sentence(checkpoint, dataset, tmp_path, more, sentence):
    done = extract(checkpoint, dataset, tmp_path / "run", *more)
    assert done.exit_code == 2
    assert sentence in error_of(done)
    assert "Traceback" not in done.output
    assert not (tmp_path / "run").exists()


def error_of(refused):
    """The one error sentence of a refused command, whose flags all exist."""
    (sentence,) = [line for line in refused.output.splitlines() if line.startswith("Error: ")]
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    parameters = group.commands["extract"].params
    flags = {flag for parameter in parameters for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert set(re.findall(r"(?<!\S)--[a-z-]+", sentence)) <= flags
    return sentence


@pytest.fixture(scope="module")
def one_sample(checkpoint, dataset, tmp_path_factory):
    """A finished run of one sample."""
    out = tmp_path_factory.mktemp("one") / "run"
    done = extract(checkpoint, dataset, out, "--limit", 1, "--max-new-tokens", 2)
    assert done.exit_code == 0, done.output
    return out


@pytest.mark.parametrize(
    ("more", "keywords", "on_the_command_line", "from_python"),
    [
        (
            ["--layers", "0"],
            {"layers": [0]},
            "with --layers 0,7, and this call has --layers 0;",
            "with layers=[0, 7], and this call has layers=[0];",
        ),
        (
            ["--max-new-tokens", 3],
            {"max_new_tokens": 3},
            "with --max-new-tokens 2, and this call has --max-new-tokens 3;",
            "with max_new_tokens=2, and this call has max_new_tokens=3;",
        ),
        (
            ["--no-answers"],
            {"answers": False},
            "with --answers, and this call has --no-answers;",
            "with answers=True, and this call has answers=False;",
        ),
        (
            ["--no-share"],
            {"share": False},
            "with --share, and this call has --no-share;",
            "with share=True, and this call has share=False;",
        ),
        (
            ["--store-dtype", "float16"],
            {"store_dtype": "float16"},
            "with --store-dtype float32, and this call has --store-dtype float16;",
            "with store_dtype='float32', and this call has store_dtype='float16';",
        ),
        (
            ["--system", "Look here."],
            {"system": "Look here."},
            "without --system, and this call has --system 'Look here.';",
            "without system, and this call has system='Look here.';",
        ),
        (
            ["--question-column", "image"],
            {"question_column": "image"},
            "with --question-column question, and this call has --question-column image;",
            "with question_column='question', and this call has question_column='image';",
        ),
        (
            ["--residual"],
            {"residual": True},
            "with no --residual, and this call has --residual;",
            "with residual=False, and this call has residual=True;",
        ),
        (
            ["--processor-pooled-pixels"],
            {"processor_pooled_pixels": True},
            "with no --processor-pooled-pixels, and this call has --processor-pooled-pixels;",
            "with processor_pooled_pixels=False, and this call has processor_pooled_pixels=True;",
        ),
        (
            ["--allow-urls"],
            {"allow_urls": True},
            "with no --allow-urls, and this call has --allow-urls;",
            "with allow_urls=False, and this call has allow_urls=True;",
        ),
    ],
)
def test_a_resumed_run_with_another_option_is_refused_as_its_caller_spells_it(
    more, keywords, on_the_command_line, from_python, checkpoint, model, dataset, one_sample
):
    refused = extract(checkpoint, dataset, one_sample, "--limit", 1, "--max-new-tokens", 2, *more)
    assert refused.exit_code == 2
    sentence = error_of(refused)
    assert sentence == f"Error: {one_sample} was started {on_the_command_line} use the old value or another --out."
    same = {"layers": [0, -1], "max_new_tokens": 2, "limit": 1}
    with pytest.raises(RunError) as raised:
        midsight.extract(dataset / "data.jsonl", model=model, out=one_sample, **{**same, **keywords})
    assert str(raised.value) == f"{one_sample} was started {from_python} use the old value or another out."


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give 1 or more, or answers=False."),
        ({"limit": 0}, "limit is 0; give 1 or more."),
        ({"batch_size": 0}, "batch_size is 0; give auto, or 1 or more."),
        ({"shard": (4, 4)}, "shard=(4, 4) does not exist; N shards have the numbers 0 to N-1."),
        ({"layers": [0, 8]}, "layers contains 8, and the model has the layers 0 to 7; give one of them."),
        ({"pixels": "cv2"}, "pixels is 'cv2'; give pil or transformers."),
        ({"store_dtype": "float8"}, "store_dtype is 'float8'; give float32 or float16."),
        ({"split": "test"}, "data.jsonl has no splits; leave split='test' out."),
        ({"layrs": [0]}, "There is no option 'layrs'; did you mean layers?"),
        ({"question_colum": "q"}, "There is no option 'question_colum'; did you mean question_column?"),
        ({"batchsize": 4}, "There is no option 'batchsize'; did you mean batch_size?"),
        ({"commit_second": 1}, "There is no option 'commit_second'; did you mean commit_seconds?"),
    ],
)
def test_a_wrong_call_from_python_is_one_sentence_with_the_name_of_the_argument(
    keywords, sentence, model, dataset, tmp_path
):
    with pytest.raises(MidsightError) as raised:
        midsight.extract(dataset / "data.jsonl", model=model, out=tmp_path / "run", **keywords)
    assert str(raised.value).removeprefix(f"{dataset}/") == sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"max_tokens": 3}, "There is no option 'max_tokens'; did you mean max_new_tokens?"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0; give 1 or more, or answers=False."),
    ],
)
def test_a_wrong_option_for_one_image_is_one_sentence(keywords, sentence, model):
    with pytest.raises(MidsightError) as raised:
        model.extract(picture((64, 64), 1), "What is this?", **keywords)
    assert str(raised.value) == sentence


@pytest.fixture(scope="module")
def tables(dataset):
    """A CSV file with other column names, and a folder of Parquet files with two splits."""
    rows = [{"nr": f"n{n}", "picture": f"{n % 2}.png", "q": f"What is number {n}?"} for n in range(4)]
    lines = ["nr,picture,q", *(",".join(row.values()) for row in rows)]
    (dataset / "data.csv").write_text("\n".join(lines) + "\n")
    (dataset / "shards").mkdir()
    for split, chosen in (("train", rows[:1]), ("test", rows[1:])):
        pq.write_table(pa.Table.from_pylist(chosen), dataset / "shards" / f"{split}-00000-of-00001.parquet")
    return dataset


@pytest.mark.parametrize(("name", "split", "rows"), [("data.csv", None, 4), ("shards", "test", 3)])
def test_extract_reads_a_dataset_from_python_as_the_command_does(
    name, split, rows, checkpoint, model, tables, tmp_path
):
    options = {"question_column": "q", "image_column": "picture", "id_column": "nr", "images": tables, "split": split}
    flags = [
        text
        for option, value in options.items()
        if value is not None
        for text in (f"--{option.replace('_', '-')}", value)
    ]
    done = call(
        "extract", tables / name, "--model", checkpoint, "--out", tmp_path / "command", "--device", "cpu",
        "--layers", "0,-1", "--max-new-tokens", 2, *flags,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    by_command = midsight.open_run(tmp_path / "command")
    by_python = midsight.extract(
        tables / name, model=model, out=tmp_path / "python", layers="0,-1", max_new_tokens=2, **options
    )
    assert len(by_python) == rows
    assert by_python.table().equals(by_command.table())
    for column in by_command.vector_columns:
        assert np.array_equal(by_python.matrix(column), by_command.matrix(column))
    assert by_python.spec.dataset == by_command.spec.dataset
    assert by_python.spec.dataset.images == (str(tables.resolve()) if name == "shards" else None)
    assert by_python.spec.request == by_command.spec.request
    assert by_python.spec.run_id != by_command.spec.run_id


def test_repeated_ids_and_missing_columns_exit_with_2(checkpoint, tmp_path):
    rows = '{"id": 1, "image": "a.png", "question": "?"}\n' * 2
    (tmp_path / "data.jsonl").write_text(rows)
    repeated = extract(checkpoint, tmp_path, tmp_path / "run", "--id-column", "id")
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
    """A command that commits after every image, so that stops fall between commits on any machine."""
    arguments = ["extract", dataset / "data.jsonl", "--model", checkpoint, "--out", out, "--device", "cpu"]
    options = ["--layers", "0,7", "--max-new-tokens", "4", "--batch-size", "2", "--commit-seconds", "0"]
    return [*map(str, arguments), *options]


def run_and_stop(arguments, out, output, kill):
    """Runs the command until two more commits are there, sends it a signal, and returns its exit code.

    For Ctrl-C it is a command as a shell starts it; else a process that is forked with all imports done.
    """
    before = committed(out)
    if kill == signal.SIGINT:
        with output.open("w") as file:
            process = subprocess.Popen([*MIDSIGHT, *arguments], stdout=file, stderr=subprocess.STDOUT)
        is_running, end = (lambda: process.poll() is None), process.wait
    else:
        process = commands.start(arguments, output, made_up=False)
        is_running, end = process.is_alive, lambda: commands.wait_for(process, output).exit_code
    while is_running() and committed(out) < before + 2:
        time.sleep(0.02)
    os.kill(process.pid or 0, kill)
    return end()


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
def test_a_stopped_and_resumed_run_loses_and_repeats_no_sample(
    checkpoint, dataset, tmp_path, uninterrupted, kill, times
):
    out = tmp_path / "run"
    for _ in range(times):
        before = committed(out)
        exit_code = run_and_stop(resumable(checkpoint, dataset, out), out, tmp_path / "output", kill)
        said = (tmp_path / "output").read_text()
        if kill == signal.SIGKILL:
            assert exit_code == -signal.SIGKILL, said
        else:
            assert exit_code == 3, said
            assert "the same command resumes from there" in said
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
def test_a_random_checkpoint_is_written_on_request(tmp_path):
    done = call("demo", "--checkpoint-only", tmp_path / "model")
    assert done.exit_code == 0
    assert "untrained" in done.output
    assert (tmp_path / "model" / "model.safetensors").is_file()
