"""Models by hub id, against a hub on loopback: what is asked for, what is kept, and what is said when it fails."""

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import close_session
from typer.testing import CliRunner

import midsight
from midsight.check.facts import read_facts
from midsight.checkpoints.hub import find_model_folder
from midsight.cli import app
from midsight.errors import MidsightError
from midsight.testing import write_phi4_multimodal, write_published_phi4mm
from support.folders import assert_sentence, copy_folder, replace_file, said_by
from support.hub_stub import connected_hub, read_files
from support.pictures import picture
from support.reference import relative_error

QUESTION = "How many lamps are lit?"
NEVER_READ = {
    "README.md",
    "README.txt",
    "notes.json",
    "vocab.json",
    "merges.txt",
    ".gitattributes",
    "pytorch_model.bin",
    "model.onnx",
    "model.onnx_data",
    "consolidated.safetensors",
    "training_args.bin",
    "onnx/config.json",
    "onnx/model.onnx",
    "speech-lora/adapter_config.json",
    "speech-lora/adapter_model.safetensors",
    "examples/prompts.json",
    "examples/vision-lora/adapter_config.json",
    "vision-lora/adapter_model.bin",
    "vision-lora/notes.json",
    "vision-lora/checkpoint-1/adapter_config.json",
}
"""Files beside a model's that must stay on the hub."""
WEIGHTS = b"w" * 400_000
SMALL = {"config.json": b"{}", "tokenizer.json": b"[1]", "model.safetensors": WEIGHTS}
"""Enough of a model where it is not loaded."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The two formats, each with Python files that leave a mark when they are run."""
    folder = tmp_path_factory.mktemp("formats")
    found = {
        "native": write_phi4_multimodal(folder / "native", layers=2),
        "published": write_published_phi4mm(folder / "published"),
    }
    mark = f"open({str(folder / 'mark')!r}, 'w').close()\n"
    for name in found.values():
        for module in ("modeling_phi4mm", "configuration_phi4mm", "processing_phi4mm", "tokenization_phi4mm"):
            (name / f"{module}.py").write_text(mark)
        add_auto_map(
            name / "config.json", AutoConfig="configuration_phi4mm.A", AutoModelForCausalLM="modeling_phi4mm.A"
        )
        add_auto_map(name / "preprocessor_config.json", AutoImageProcessor="processing_phi4mm.A")
        add_auto_map(name / "tokenizer_config.json", AutoTokenizer=["tokenization_phi4mm.A", None])
    return found


def add_auto_map(path, **classes):
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, "auto_map": classes}))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with connected_hub(tmp_path, monkeypatch) as hub:
        yield hub


def call_in_new_process(hub, tmp_path, hub_id, **environment):
    """`find_model_folder` in a process whose client is set up by its environment alone; its last line of output."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSF"))}
    code = (
        "import sys\n"
        "from midsight.checkpoints.hub import find_model_folder\n"
        "from midsight.errors import MidsightError\n"
        "try: print(find_model_folder(sys.argv[1]).path)\n"
        "except MidsightError as error: print('Error:', error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, hub_id],
        env={**kept, "HF_ENDPOINT": hub.endpoint, "HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip().rpartition("\n")[2]


def load(source, **options):
    return midsight.load(source, device="cpu", **options)


def check(hub_id, *more):
    return CliRunner().invoke(app, ["check", hub_id, *more])


def vectors_of(model):
    record = model.extract(picture((500, 300), 1), QUESTION, max_new_tokens=3)
    return {
        "vision": record.vision_only_representation,
        **{f"token.{k}": v for k, v in record.vision_token_representation.items()},
        **{f"query.{k}": v for k, v in record.query_token_representation.items()},
        "answer": record.answer_token_ids,
    }


def needed(folder):
    """The names of a folder's files that are read, by a rule of its own."""
    names = {name for name in read_files(folder) if not name.endswith(".py")}
    return {name for name in names if "/" not in name or name.startswith("vision-lora/")}


@pytest.mark.parametrize("folder_format", ["native", "published"])
def test_a_hub_id_gives_the_folders_numbers_from_the_needed_files_alone(hub, folders, folder_format):
    files = read_files(folders[folder_format])
    if folder_format == "published":  # its LoRA is in the shards; the repository has it a second time
        files |= {"vision-lora/adapter_config.json": b"{}", "vision-lora/adapter_model.safetensors": b"again"}
    never = {**dict.fromkeys(NEVER_READ, b"\x80 not for reading"), "modeling_phi4mm.py": files["modeling_phi4mm.py"]}
    commit = hub.add("maker/model", {**files, **never}, "main")

    by_id = load("maker/model")
    assert by_id.loaded.revision == commit
    assert hub.files("GET") == sorted(needed(folders[folder_format]))
    assert set(hub.files("HEAD")) == needed(folders[folder_format])
    snapshot = find_model_folder("maker/model").path
    assert set(read_files(snapshot)) == needed(folders[folder_format])

    by_folder = load(folders[folder_format])
    assert by_folder.loaded.revision is None
    assert (by_id.loaded.format, by_id.loaded.lora) == (by_folder.loaded.format, by_folder.loaded.lora)
    expected, found = vectors_of(by_folder), vectors_of(by_id)
    assert set(found) == set(expected)
    for name, vector in expected.items():
        np.testing.assert_array_equal(found[name], vector, err_msg=name)


def test_an_adapter_brings_its_base_model(hub, folders):
    """Each with the files that are read, at the commits that are recorded."""
    native = folders["native"]
    base = hub.add("maker/base", read_files(native), "main")
    files = adapter_files(native)
    commit = hub.add("maker/adapter", {**files, "training_args.bin": b"\x80", "checkpoint-1/rng.pth": b"\x80"}, "main")
    loaded = load("maker/adapter").loaded
    assert loaded.adapter is not None
    assert (loaded.revision, loaded.adapter.base, loaded.adapter.base_revision) == (commit, "maker/base", base)
    assert hub.files("GET") == sorted([*files, *needed(native)])
    once, twice = vectors_of(load("maker/base")), vectors_of(load("maker/adapter"))
    assert relative_error(twice["query.1"], once["query.1"]) > 0.01


@pytest.mark.slow
def test_the_base_models_revision(hub, folders):
    """The user's, else the one that the adapter names, else the main branch."""
    files = read_files(folders["native"])
    old = hub.add("maker/base", files, "v1")
    new = hub.add("maker/base", {**files, "README.md": b"new"}, "main")
    hub.add("maker/adapter", adapter_files(folders["native"]), "main")
    hub.add("maker/pinned", adapter_files(folders["native"], revision="v1"), "main")
    wanted = [
        ("maker/adapter", {}, new),
        ("maker/adapter", {"base_revision": "v1"}, old),
        ("maker/adapter", {"base": "maker/base", "base_revision": old}, old),
        ("maker/pinned", {}, old),
        ("maker/pinned", {"base_revision": "main"}, new),
        ("maker/pinned", {"base": "maker/base"}, new),
    ]
    for source, options, commit in wanted:
        origin = load(source, **options, weights=False).loaded.adapter
        assert origin is not None
        assert origin.base_revision == commit, (source, options)
    assert read_facts("maker/adapter", base_revision="v1").folder.endswith(old)
    for words, source, options in (
        ("maker/base has no revision v9", "maker/adapter", {"base_revision": "v9"}),
        ("base_revision='v1' goes with a hub id", "maker/adapter", {"base": folders["native"], "base_revision": "v1"}),
        ("base_revision='v1' goes with an adapter's folder", "maker/base", {"base_revision": "v1"}),
    ):
        said = said_by(load, source, **options)
        assert said is not None
        assert words in said
        assert_sentence(said)
    assert CliRunner().invoke(app, ["check", "maker/adapter", "--base-revision", "v1"]).exit_code == 0


def adapter_files(native, **changes):
    """An adapter of the hub's maker/base."""
    settings = json.loads((native / "vision-lora" / "adapter_config.json").read_text())
    return {
        "adapter_config.json": json.dumps({**settings, "base_model_name_or_path": "maker/base", **changes}).encode(),
        "adapter_model.safetensors": (native / "vision-lora" / "adapter_model.safetensors").read_bytes(),
    }


def test_an_adapter_with_other_trained_weights_is_refused(hub, folders):
    """They are a pickle, which is not downloaded."""
    hub.add("maker/base", read_files(folders["native"]), "main")
    files = adapter_files(folders["native"])
    hub.add("maker/adapter", {**files, "config.json": b"{}", "non_lora_state_dict.bin": b"\x80"}, "main")
    said = said_by(load, "maker/adapter")
    assert said is not None
    assert "maker/adapter has non_lora_state_dict.bin" in said
    assert hub.files("GET") == ["adapter_config.json", "config.json"]


def test_a_model_with_an_adapter_beside_it_is_refused(hub, folders):
    hub.add("maker/model", {**read_files(folders["native"]), **adapter_files(folders["native"])}, "main")
    said = said_by(load, "maker/model")
    assert said is not None
    assert "adapter_config.json next to the model's config" in said


def test_a_run_records_the_commit(hub, folders, tmp_path):
    hub.add("maker/model", read_files(folders["native"]), "main")
    picture((64, 48), 1).save(tmp_path / "a.png")
    (tmp_path / "data.jsonl").write_text(json.dumps({"image": "a.png", "question": QUESTION}) + "\n")
    midsight.extract(tmp_path / "data.jsonl", model="maker/model", out=tmp_path / "run", max_new_tokens=1)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["model"]
    assert recorded["name"] == "maker/model"
    assert recorded["revision"] == hub.repositories["maker/model"].refs["main"]


def test_a_local_folder_is_read_without_a_connection_and_without_its_python(hub, folders, monkeypatch):
    tried = []

    def refuse(*args, **kwargs):
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for folder in folders.values():
        vectors_of(load(folder))
    assert tried == hub.requests == []
    assert not (folders["native"].parent / "mark").exists()


def test_branch_tag_and_commit_each_give_their_own_commit(hub):
    old = hub.add("maker/model", {**SMALL, "config.json": b'"old"'}, "v1")
    new = hub.add("maker/model", {**SMALL, "config.json": b'"new"'}, "main", "feature/x")
    wanted = {None: new, "main": new, "feature/x": new, "v1": old, old: old, new: new}
    for revision, commit in wanted.items():
        found = find_model_folder("maker/model", revision=revision)
        assert (found.revision, found.path.name) == (commit, commit)
        assert (found.path / "config.json").read_bytes() == (b'"old"' if commit == old else b'"new"')
    assert len(hub.files("GET")) == 4, "files of the same content are fetched once"


def test_a_branch_that_moves_between_two_calls_is_followed(hub):
    first = hub.add("maker/model", SMALL, "main")
    assert find_model_folder("maker/model").revision == first
    second = hub.add("maker/model", {**SMALL, "config.json": b'"new"'}, "main")
    assert find_model_folder("maker/model").revision == second
    assert find_model_folder("maker/model", revision=first).revision == first


@pytest.mark.parametrize("moment", ["/tree/", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_branch_that_moves_during_the_download_changes_nothing(hub, moment):
    commit = hub.add("maker/model", SMALL, "main")
    moved = {name: content + b" " for name, content in SMALL.items()}

    def move(request):
        if moment in request.path:
            hub.add("maker/model", moved, "main")

    hub.on_request = move
    found = find_model_folder("maker/model")
    assert found.revision == commit
    assert read_files(found.path) == SMALL
    assert hub.repositories["maker/model"].refs["main"] != commit


def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.add("maker/model", SMALL, "main")
    hub.cuts["model.safetensors"] = 150_000
    assert read_files(find_model_folder("maker/model").path) == SMALL
    ranges = [r.bytes_range for r in hub.requests if r.method == "GET" and r.file == "model.safetensors"]
    assert ranges == [None, "bytes=150000-", "bytes=300000-"]


def test_the_next_call_fetches_what_a_broken_download_left(hub):
    hub.add("maker/model", SMALL, "main")
    hub.cuts["model.safetensors"] = 150_000  # less than the client keeps of a broken connection
    said = check("maker/model")
    assert said.exit_code == 2
    assert one_sentence(said.output).startswith("maker/model could not be downloaded completely (")
    assert said.output.strip().endswith("run the same command to fetch the missing files.")
    assert {"config.json", "tokenizer.json"} <= set(hub.files("GET"))

    hub.cuts.clear()
    hub.requests.clear()
    found = find_model_folder("maker/model")
    assert read_files(found.path) == SMALL
    assert hub.files("GET") == hub.files("HEAD") == ["model.safetensors"]
    # The client throws the part of a file away when the call fails, so the file starts over.
    assert [r.bytes_range for r in hub.requests if r.file and r.method == "GET"] == [None]

    hub.requests.clear()
    assert find_model_folder("maker/model") == found
    assert hub.files("GET") == hub.files("HEAD") == []


def one_sentence(output):
    """What was said after the progress, without its `Error: `; fails where it is more than a sentence."""
    said = re.search(r"^Error: (.+)\Z", output.strip(), re.MULTILINE)
    assert said, output
    line = said[1]
    assert line.endswith(".")
    assert not re.search(r"\. [A-Z]|Traceback|Request ID", line), line
    return line


@pytest.mark.slow
def test_the_environment_says_where_the_cache_is_and_whether_the_hub_is_asked(hub, tmp_path):
    commit = hub.add("maker/model", SMALL, "main")
    home = tmp_path / "home"
    path = call_in_new_process(hub, tmp_path, "maker/model", HF_HOME=str(home))
    assert path == f"{home}/hub/models--maker--model/snapshots/{commit}"
    assert read_files(Path(path)) == SMALL

    hub.requests.clear()
    offline = {"HF_HUB_OFFLINE": "1"}
    assert call_in_new_process(hub, tmp_path, "maker/model", HF_HUB_CACHE=str(home / "hub"), **offline) == path
    said = call_in_new_process(hub, tmp_path, "maker/model", HF_HUB_CACHE=str(tmp_path / "empty"), **offline)
    assert one_sentence(said) == (
        f"maker/model at main is not complete in the cache {tmp_path}/empty, and HF_HUB_OFFLINE is set; "
        "unset it to download the model, or give a folder."
    )
    assert hub.requests == []


@pytest.mark.parametrize("lost", SMALL)
def test_offline_a_cache_that_lacks_a_file_is_explained(hub, monkeypatch, lost):
    hub.add("maker/model", SMALL, "main")
    found = find_model_folder("maker/model")
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model_folder("maker/model") == found
    (found.path / lost).unlink()
    with pytest.raises(
        MidsightError, match=r"^maker/model at .* is not complete in the cache .*, and HF_HUB_OFFLINE is set"
    ):
        find_model_folder("maker/model")
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["model-00002-of-00003.safetensors", "tokenizer.json", "config.json", "model.safetensors.index.json"]
)
def test_a_file_damaged_in_the_cache_is_replaced_by_the_command_that_the_error_names(hub, folders, tmp_path, name):
    """The same call again would not: the hub is not asked for what is in the cache."""
    commit = hub.add("maker/my-model", read_files(folders["published"]), "main")
    damaged = (find_model_folder("maker/my-model").path / name).resolve()
    damaged.write_bytes(damaged.read_bytes()[:1000])
    said = {said_by(call, "maker/my-model") or "It is taken." for call in (load, load, read_facts)}
    assert len(said) == 1
    (command,) = re.findall(rf"; download {re.escape(name)} again with `hf (.+)`\.$", said.pop())
    assert command == f"download maker/my-model {name} --revision {commit} --force-download"
    environment = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    code = "from huggingface_hub.cli.hf import main; main()"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *command.split()],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    assert check("maker/my-model").exit_code == 0


def test_a_damaged_file_of_a_plain_folder_needs_no_command(folders, tmp_path):
    folder = copy_folder(folders["published"], tmp_path / "model")
    replace_file(folder / "tokenizer.json", b"{")
    assert (said_by(load, folder) or "").endswith("; download tokenizer.json again.")


def test_a_private_model_is_read_with_the_token_of_the_environment(hub, monkeypatch):
    hub.add("maker/model", SMALL, "main")
    hub.repositories["maker/model"].token = "hf_secret"
    said = check("maker/model")
    assert said.exit_code == 2
    assert one_sentence(said.output) == (
        "maker/model is neither a folder here nor a model on the hub that you may read; check the name, "
        "or for a private model run `hf auth login` or set HF_TOKEN."
    )
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert read_files(find_model_folder("maker/model").path) == SMALL
    assert {request.token for request in hub.requests} == {None, "hf_secret"}


def test_a_gated_model_asks_for_its_terms_to_be_accepted(hub):
    hub.add("maker/model", SMALL, "main")
    hub.repositories["maker/model"].token = "hf_secret"
    hub.repositories["maker/model"].gated = True
    said = check("maker/model")
    assert said.exit_code == 2
    assert one_sentence(said.output) == (
        "maker/model is gated; accept its terms on the hub, then run `hf auth login` or set HF_TOKEN."
    )


@pytest.mark.parametrize(
    ("status", "path", "expected"),
    [
        (
            500,
            "/api/",
            "The hub answers the request for maker/model with status 500; try again later, or give a folder.",
        ),
        (
            500,
            "/tree/",
            "The hub answers the request for maker/model with status 500; try again later, or give a folder.",
        ),
        (
            503,
            "model.safetensors",
            "The hub answers the request for maker/model with status 503; try again later, or give a folder.",
        ),
        (
            401,
            "/api/",
            "The hub refuses access to maker/model (status 401); run `hf auth login` again, or set another HF_TOKEN.",
        ),
        (
            403,
            "config.json",
            "The hub refuses access to maker/model (status 403); run `hf auth login` again, or set another HF_TOKEN.",
        ),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(hub, monkeypatch, status, path, expected):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.add("maker/model", SMALL, "main")
    hub.on_request = lambda request: status if path in request.path else None
    said = check("maker/model")
    assert (said.exit_code, one_sentence(said.output)) == (2, expected)


@pytest.mark.parametrize("revision", ["no-such-branch", "0" * 40])
def test_an_unknown_revision_is_named(hub, revision):
    hub.add("maker/model", SMALL, "main")
    said = check("maker/model", "--revision", revision)
    assert said.exit_code == 2
    assert one_sentence(said.output) == (
        f"maker/model has no revision {revision}; give a branch, tag or commit that it has."
    )


def test_a_hub_out_of_reach_is_said_and_its_cache_used(hub):
    hub.add("maker/model", SMALL, "main")
    found = find_model_folder("maker/model")
    hub.add("maker/other", SMALL, "main")
    hub.close()
    close_session()  # its connections outlive the server's socket
    said = check("maker/other")
    assert said.exit_code == 2
    assert re.fullmatch(
        r"maker/other is not in the cache, and the hub cannot be reached \(.*refused\); "
        r"connect to it, or give a folder\.",
        one_sentence(said.output),
    )
    assert find_model_folder("maker/model") == found


def test_a_full_disk_is_named(hub, monkeypatch, tmp_path):
    def fill(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    hub.add("maker/model", SMALL, "main")
    monkeypatch.setattr("huggingface_hub.file_download.http_get", fill)
    said = check("maker/model")
    assert said.exit_code == 2
    assert one_sentence(said.output) == (
        f"The disk of the cache {tmp_path}/cache is full; free space there, or set HF_HOME to another disk."
    )


@pytest.mark.parametrize(
    "name",
    [
        "phi4",
        "./maker/model",
        "../model",
        "/maker/model",
        "a/b/c",
        "maker/model/",
        "maker--x/model",
        "a/b.git",
        "~/phi",
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id_reaches_no_hub(hub, name):
    with pytest.raises(
        MidsightError, match="is neither a folder nor a hub id like owner/name; give one of them"
    ) as caught:
        find_model_folder(name)
    assert str(caught.value).startswith(name)
    assert hub.requests == []


def test_a_folder_is_preferred_to_a_hub_id_of_its_name(hub, monkeypatch, tmp_path):
    hub.add("maker/model", SMALL, "main")
    (tmp_path / "maker" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = find_model_folder("maker/model")
    assert (found.path, found.revision) == (Path("maker/model"), None)
    assert hub.requests == []
    with pytest.raises(MidsightError, match=r"^revision='v1' goes with a hub id, and maker/model is a folder; leave"):
        find_model_folder("maker/model", revision="v1")


def test_the_folder_of_a_snapshot_has_its_commit(hub):
    commit = hub.add("maker/model", SMALL, "main")
    found = find_model_folder("maker/model")
    assert find_model_folder(found.path) == found
    assert found.revision == commit


@pytest.mark.parametrize("index", [True, False], ids=["with an index", "without"])
def test_names_that_lead_out_of_the_folder_are_left_alone(hub, tmp_path, index):
    files = {
        **SMALL,
        "../config.json": b"outside",
        "../../../config.json": b"outside",
        "vision-lora/../../evil.json": b"outside",
        "vision-lora/../../../../evil.safetensors": b"outside",
        f"{tmp_path}/evil.json": b"outside",
        "deep/shard.safetensors": b"not beside the others",
        "stage.py": b"raise SystemExit",
    }
    if index:
        names = [
            "model.safetensors",
            "*",
            "../config.json",
            "deep/shard.safetensors",
            "stage.py",
            "vision-lora/../../x",
        ]
        files["model.safetensors.index.json"] = json.dumps(
            {"weight_map": {str(n): name for n, name in enumerate(names)}}
        ).encode()
    hub.add("maker/model", files, "main")
    found = find_model_folder("maker/model")
    assert set(read_files(found.path)) == {*SMALL, *(["model.safetensors.index.json"] if index else [])}
    assert set(hub.files("GET")) == set(hub.files("HEAD")) == set(read_files(found.path))
    assert not list(tmp_path.rglob("evil*"))


def test_of_the_weights_only_the_shards_that_the_index_names_are_fetched(hub):
    shards = {"model-1[a].safetensors": b"1", "model-2.safetensors": b"2"}
    index = json.dumps({"weight_map": {"x": "model-1[a].safetensors", "y": "model-2.safetensors"}}).encode()
    wanted = {"config.json": b"{}", "model.safetensors.index.json": index, **shards}
    hub.add(
        "maker/model",
        {**wanted, "model-1a.safetensors": b"", "consolidated.safetensors": b"", "model.safetensors": b""},
        "main",
    )
    assert read_files(find_model_folder("maker/model").path) == wanted


def test_a_model_of_pickles_is_refused_before_they_are_fetched(hub, folders):
    files = {name: data for name, data in read_files(folders["native"]).items() if not name.endswith(".safetensors")}
    hub.add("maker/model", {**files, "pytorch_model.bin": b"\x80\x04."}, "main")
    said = check("maker/model")
    assert said.exit_code == 2
    assert "has no safetensors weights" in said.output
    assert "pytorch_model.bin" not in hub.files("HEAD") + hub.files("GET")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--layers", "0,2"], "--layers contains 2, and the model has the layers 0 to 1; give one of them."),
        (["--prompt", "<|user|>{question}"], "--prompt contains the control token '<|user|>'; leave it out: midsight"),
        (["--layers", "0"], "maker/model has the architecture VipLlavaForConditionalGeneration, which is not known;"),
    ],
)
def test_options_are_judged_by_small_files_before_the_weights_are_fetched(hub, folders, tmp_path, more, said):
    files = read_files(folders["native"])
    if "not known" in said:
        files["config.json"] = b'{"architectures": ["VipLlavaForConditionalGeneration"]}'
    hub.add("maker/model", files, "main")
    data = tmp_path / "data.csv"
    data.write_text("image,question\na.png,What?\n")
    call = ["extract", str(data), "--model", "maker/model", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*call, *more], env={"COLUMNS": "300"})
    assert done.exit_code == 2
    assert said in done.output
    assert [name for name in hub.files("GET") if name.endswith(".safetensors")] == []


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["Idefics2ForConditionalGeneration"], "model_type": "idefics2"},
        {"model_type": "idefics2"},
    ],
)
def test_a_family_that_is_not_known_is_named_before_its_weights_are_fetched(hub, config):
    hub.add("some/model", {**SMALL, "config.json": json.dumps(config).encode()}, "main")
    with pytest.raises(
        MidsightError, match=r"^some/model has the architecture Idefics2For\w+, which is not known; midsight"
    ):
        find_model_folder("some/model")
    assert hub.files("GET") == ["config.json", "tokenizer.json"]
