"""The remedy in an error about a model's file: to download it again, and for the hub's cache with which command."""

from pathlib import Path

import pytest

import midsight
from midsight.check.facts import read_facts
from midsight.checkpoints.hub import find_model_folder, how_to_download_again
from midsight.errors import MidsightError, ModelFileError
from support.folders import assert_sentence, copy_folder, edit_json, edit_published, replace_file, said_by

COMMIT = "93f923e1a7727d1c4f446756212d9d3e8fcc5d81"
COMMAND = "hf download maker/my--model{file} --revision " + COMMIT + " --force-download"


def snapshot_of(cache):
    """A folder of the hub's cache, not made."""
    return cache / "models--maker--my--model" / "snapshots" / COMMIT


def said(folder, error):
    with pytest.raises(type(error)) as raised, how_to_download_again(folder):
        raise error
    return raised.value


@pytest.mark.parametrize(
    ("file", "again"),
    [
        (None, "download the folder again"),
        ("config.json", "download config.json again"),
        ("vision-lora/adapter_config.json", "download adapter_config.json again"),
    ],
)
class TestTheSentence:
    """What is wrong comes first, the remedy last."""

    @pytest.mark.parametrize("inside", [True, False], ids=["path from the folder on", "path inside the folder"])
    def test_in_the_cache_it_has_the_command(self, tmp_path, file, again, inside):
        folder = snapshot_of(tmp_path)
        path = None if file is None else folder / file if inside else Path(file)
        error = said(folder, ModelFileError("It is broken", path))
        command = COMMAND.format(file="" if file is None else f" {file}")
        assert str(error) == f"It is broken; {again} with `{command}`."
        assert isinstance(error, ModelFileError)
        assert (error.problem, error.path) == ("It is broken", path)

    @pytest.mark.parametrize("place", ["model", f"snapshots/{COMMIT}", "models--maker--model/snapshots/main"])
    def test_elsewhere_it_has_none(self, tmp_path, file, again, place):
        folder = tmp_path / place
        error = ModelFileError("It is broken", file and folder / file)
        assert said(folder, error) is error
        assert str(error) == f"It is broken; {again}."

    def test_the_cache_is_found_through_a_link(self, tmp_path, file, again):
        snapshot_of(tmp_path).mkdir(parents=True)
        (tmp_path / "link").symlink_to(snapshot_of(tmp_path))
        error = said(tmp_path / "link", ModelFileError("It is broken", file and tmp_path / "link" / file))
        assert str(error).endswith(f"with `{COMMAND.format(file=f' {file}' if file else '')}`.")


def test_a_file_outside_the_folder_is_not_in_the_command(tmp_path):
    error = said(snapshot_of(tmp_path), ModelFileError("It is broken", tmp_path / "config.json"))
    assert str(error) == f"It is broken; download config.json again with `{COMMAND.format(file='')}`."


def test_other_errors_stay_as_they_are(tmp_path):
    error = MidsightError("The device is not there.")
    assert said(snapshot_of(tmp_path), error) is error


DAMAGES = {
    "config.json": lambda folder: replace_file(folder / "config.json", b"{"),
    "config.json ": lambda folder: edit_json(folder / "config.json", lambda config: config.pop("hidden_size")),
    "tokenizer.json": lambda folder: replace_file(folder / "tokenizer.json", b"{}"),
    "generation_config.json": lambda folder: replace_file(folder / "generation_config.json", b"[]"),
    "model.safetensors.index.json": lambda folder: replace_file(folder / "model.safetensors.index.json", b"{}"),
    "model-00001-of-00003.safetensors": lambda folder: (folder / "model-00001-of-00003.safetensors").unlink(),
    "": lambda folder: edit_published(folder, lambda tensors: tensors.pop("model.norm.weight")),
}
"""By file, what is done to a published folder; an empty name for damage that is in no single file."""


@pytest.mark.parametrize("file", DAMAGES)
@pytest.mark.parametrize("call", [midsight.load, read_facts], ids=["load", "read_facts"])
def test_a_damaged_folder_says_what_to_download_again(folders, tmp_path, call, file):
    plain = copy_folder(folders["published phi4mm"], tmp_path / "plain")
    snapshot_of(tmp_path).parent.mkdir(parents=True)
    cached = copy_folder(folders["published phi4mm"], snapshot_of(tmp_path))
    for folder in (plain, cached):
        DAMAGES[file](folder)
    without, with_command = (said_by(call, folder) for folder in (plain, cached))
    assert without is not None
    assert with_command is not None
    assert_sentence(without)
    assert with_command.startswith(without.removesuffix(".").replace(str(plain), str(cached)))
    name = file.strip()
    assert without.endswith(f"; download {name or 'the folder'} again.")
    assert with_command.endswith(f" again with `{COMMAND.format(file=f' {name}' if name else '')}`.")
    assert find_model_folder(cached).revision == COMMIT
