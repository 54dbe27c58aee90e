"""The help of every command, what a command imports before it needs it, and what is said when one is stopped."""

import re
import shlex
import subprocess
import sys

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from midsight import cli
from midsight.checkpoints.adapter import find_fingerprint
from midsight.commands.outcome import stopped
from midsight.extraction.same_run import describe_dataset
from midsight.families.catalogue import what_is_known
from midsight.samples.tables import read_table
from support.folders import edit_json, needs_facts, write_published_size
from support.made_up import make_model_spec, make_record, make_request, make_spec, write_run

GROUP = typer.main.get_command(cli.app)
assert isinstance(GROUP, TyperGroup)
COMMANDS = GROUP.commands
PANELS = ("Data", "What to extract", "Model", "Running", "Storing")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_with_options_that_it_has(name):
    shown = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200"}).output
    (example,) = re.findall(r"Example: (midsight .*)", shown)
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("midsight", name)
    COMMANDS[name].make_context(name, arguments)  # raises for an option or a value that the command does not take


def test_the_options_of_extract_are_in_groups():
    shown = CliRunner().invoke(cli.app, ["extract", "--help"], env={"COLUMNS": "100"}).output
    assert [panel for panel in PANELS if f"\u2500 {panel} \u2500" not in shown] == []
    groups = {p.name: getattr(p, "rich_help_panel", None) for p in COMMANDS["extract"].params}
    assert [name for name, group in groups.items() if group not in PANELS and name not in ("data", "debug")] == []


def test_layers_say_what_a_layers_output_is():
    """Where the encoder adds to image tokens between the decoder's layers."""
    (option,) = (p for p in COMMANDS["extract"].params if p.name == "layers")
    assert "before what Qwen3-VL adds to image tokens after its first layers (deepstack)" in str(vars(option)["help"])


def test_completion_can_be_installed():
    assert "--install-completion" in CliRunner().invoke(cli.app, ["--help"]).output


def imported_by(*calls):
    """Modules that are imported after some commands, each a list of arguments, were called in one new process."""
    program = f"""
import sys
from midsight.cli import app
for call in {calls!r}:
    app(list(call), standalone_mode=False)
print("MODULES", *sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split()), done.stderr


LATE = {"torch", "transformers", "tokenizers", "torchvision", "peft", "sklearn", "pandas", "datasets"}
"""Packages that take long to import; scipy too, but a report needs it."""


def test_commands_that_need_no_model_import_no_torch(tmp_path):
    run = str(tmp_path)
    calls = (
        ["extract", "nope.jsonl", "--model", "demo", "--device", "cpu", "--out", str(tmp_path / "run")],
        ["show", run], ["verify", run], ["compact", run], ["label", run, "--judge", "yes_no"],
        ["export", run, "--format", "csv", "--out", str(tmp_path / "a.csv")],
        ["report", run, "--out", str(tmp_path / "a.html")],
    )  # fmt: skip
    modules, said = imported_by(*calls)
    assert modules & LATE == set()
    assert said.splitlines()[0] == "Error: nope.jsonl does not exist; give a table file."
    assert len(said.splitlines()) == len(calls)


@pytest.mark.slow
@needs_facts
def test_mistakes_on_the_folder_of_11_gb_are_found_without_torch(tmp_path):
    """So they take a second or two: importing torch and making the tokenizer would take ten."""
    write_run(tmp_path / "run", [make_record(0)])
    data, left_out = tmp_path / "data.csv", "leave it out: midsight places it"
    use = "use the old value or another --out."
    data.write_text("image,question\na.png,What?\n")
    folder, other = write_published_size(tmp_path / "model"), write_published_size(tmp_path / "other")
    edit_json(other / "config.json", lambda config: config.update(torch_dtype="float32"))
    own = write_finished_run(tmp_path / "own", data, folder)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "config.json").write_text('{"architectures": ["VipLlavaForConditionalGeneration"]}')
    (tmp_path / "own.py").write_text("FAMILY = None")
    call = ["extract", str(data), "--model", str(folder)]
    new = [*call, "--device", "cpu", "--out", str(tmp_path / "new")]
    old = f"{own} was started with"
    shown = [f"--model {one} (SHA-256 {str(find_fingerprint(one))[:16]})" for one in (folder, other)]
    mistakes = {
        ("--layers", "32"): "--layers contains 32, and the model has the layers 0 to 31; give one of them.",
        ("--positions", "all"): "--positions contains 'all'; choose from vision_token, query_token, image_mean.",
        ("--prompt", "<|end|>{question}"): f"--prompt contains the control token '<|end|>'; {left_out}.",
        ("--prompt", "<|user|>{question}"): f"--prompt contains the control token '<|user|>'; {left_out}.",
        ("--system", "<|tool|>"): f"--system contains the control token '<|tool|>'; {left_out}.",
        ("--limit", "0"): "--limit is 0; give 1 or more.",
        ("--out", str(data)): f"{data} is a file, and a run is a folder; give another --out.",
        ("--out", str(tmp_path / "run")): f"{tmp_path}/run was started with --layers 0,1, and this call has --layers "
        "0,8,16,24,31; use the old value or another --out.",
        ("--question-column", "q"): f"{data} has no column 'q'; it has 'image', 'question': choose one "
        "with --question-column.",
        ("--dtype", "int8"): "--dtype int8 is unknown; give auto, float32, bfloat16 or float16.",
        ("--device", "quantum"): "--device quantum is unknown; give auto, cpu, mps, cuda or cuda:N.",
        ("--lora", "maybe"): "--lora maybe is unknown; give auto or merged or unmerged or off.",
        ("--device-map", "gpu"): "--device-map is 'gpu'; give auto, or in Python a mapping from numbers of layers to "
        "devices or disk.",
        ("--pixels", "cv2"): "--pixels is 'cv2'; give pil or transformers.",
        ("--model", "nope"): "nope is neither a folder nor a hub id like owner/name; give one of them.",
        ("--model", str(tmp_path / "unknown")): f"{tmp_path}/unknown has the architecture "
        f"VipLlavaForConditionalGeneration, which is not known; {what_is_known('VipLlava')}.",
        ("--family", "nope.py"): "--family nope.py cannot be read (No such file or directory); give a family file.",
        ("--family", f"{tmp_path}/own.py"): f"--family {tmp_path}/own.py has no proof beside it (own.proof.json); "
        f"prove it with `midsight adapter MODEL --prove {tmp_path}/own.py`.",
        ("--dtype", "float16", "--out", own): f"{old} --dtype float32, and this call has --dtype float16; {use}",
        ("--lora", "off", "--out", own): f"{old} --lora merged, and this call has --lora off; {use}",
        ("--pixels", "transformers", "--out", own): f"{old} --pixels pil, and this call has --pixels transformers; "
        f"{use}",
        ("--model", str(other), "--out", own): f"{old} {shown[0]}, and this call has {shown[1]}; use the old one or "
        "another --out.",
    }  # fmt: skip
    modules, said = imported_by(*([*new, *mistake] for mistake in mistakes), [*new, "--out", own])
    *errors, finished = said.splitlines()
    assert errors == [f"Error: {sentence}" for sentence in mistakes.values()]
    assert finished == "1 sample on 1 image, 1 done before, nothing to do."
    assert modules & {*LATE, "scipy"} == set()


def write_finished_run(path, data, model):
    """A run in the folder `path` with one row, as one call on a table and a published model would have left it."""
    table = read_table(data)
    spec = make_spec(
        request=make_request(layers=(0, 8, 16, 24, 31), positions=("vision_token", "query_token"), residual=False),
        model=make_model_spec(
            name=str(model), fingerprint=find_fingerprint(model), layers=32, family_file=None, family_sha256=None
        ),
        dataset=describe_dataset(table),
        extras={},
    )
    write_run(path, [make_record(0, spec, sample_id=table.samples[0].sample_id, extras={})], spec)
    return str(path)


def test_show_reads_a_run_without_pandas(tmp_path):
    write_run(tmp_path / "run", [make_record(0), make_record(1)])
    run = str(tmp_path / "run")
    modules, said = imported_by(["show", run])
    assert said == ""
    assert modules & {*LATE, "scipy"} == set()


def test_help_and_version_import_neither_numpy_nor_pyarrow():
    modules, _ = imported_by(["--help"], ["extract", "--help"], ["--version"])
    assert modules & {"torch", "transformers", "numpy", "pyarrow", "PIL", "huggingface_hub"} == set()


def test_python_m_midsight_is_the_command():
    done = subprocess.run([sys.executable, "-m", "midsight", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("midsight ")


def test_a_stopped_command_says_what_is_stored(tmp_path):
    assert stopped(None) == "Stopped."
    assert stopped(tmp_path) == "Stopped before anything was stored; the same command starts again."
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0-of-1-000000.json").write_text("{}")
    assert stopped(tmp_path) == "Stopped. What was finished is stored; the same command resumes from there."
