"""Which files of a folder decide the numbers, and that no other changes the fingerprint."""

import pytest

from midsight.checkpoints.fingerprint import fingerprint
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.errors import MidsightError
from support.folders import edit_json, edit_tensors, replace_file


def print_of(folder):
    return fingerprint(folder, open_checkpoint(folder).headers)


def test_files_that_are_not_read_change_nothing(folder):
    before = print_of(folder)
    (folder / "consolidated.safetensors").write_bytes(b"another tool's")
    for name in ("README.md", "README.txt", "notes.json", "vocab.json", "trainer_state.json", "prompt.jinja"):
        (folder / name).write_text("about it")
    (folder / "modeling_phi4mm.py").write_text("raise SystemExit")
    (folder / "speech-lora").mkdir()
    (folder / "speech-lora" / "notes.json").write_text("{}")
    assert print_of(folder) == before


def test_a_lora_folder_beside_the_published_format_changes_nothing(published, native):
    before = print_of(published)
    (native / "vision-lora").rename(published / "vision-lora")
    assert print_of(published) == before


def test_weights_config_and_tokenizer_change_it(folder):
    seen = {print_of(folder)}
    edit_json(folder / "config.json", lambda config: config.update(rms_norm_eps=1e-6))
    seen.add(print_of(folder))
    text = (folder / "tokenizer.json").read_bytes()
    replace_file(folder / "tokenizer.json", text + b"\n")
    seen.add(print_of(folder))
    edit_tensors(next(folder.glob("*.safetensors")), lambda tensors: next(iter(tensors.values())).flatten()[:1].add_(1))
    seen.add(print_of(folder))
    assert len(seen) == 4


def test_the_lora_beside_the_weights_changes_it(native):
    before = print_of(native)
    edit_json(native / "vision-lora" / "adapter_config.json", lambda config: config.update(lora_alpha=9))
    assert print_of(native) != before


def test_weights_beside_those_of_the_index_are_refused(published):
    """transformers would load the one file, and the index promises the others."""
    shard = next(published.glob("model-*.safetensors"))
    (published / "model.safetensors").write_bytes(shard.read_bytes())
    with pytest.raises(MidsightError, match=r"has model\.safetensors next to the files that .*index\.json names"):
        open_checkpoint(published)
