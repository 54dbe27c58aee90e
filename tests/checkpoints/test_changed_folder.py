"""A run resumes only with the model that it was started with: the fingerprint of its folder decides."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import midsight
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from support.folders import LAYERS, edit_tensors, replace_file
from support.pictures import picture

PAIRS = [(picture((64, 64), 1), "What is this?"), (picture((64, 64), 1), "How many?")]
REQUEST = {"layers": "0", "answers": False}
SHARDS = {"transformers": "model.safetensors", "published phi4mm": "model-00003-of-00003.safetensors"}


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """A run of each format, stopped after its first sample."""
    out = tmp_path_factory.mktemp("runs")
    for folder_format, folder in folders.items():
        model = midsight.load(folder, device="cpu")
        assert len(midsight.extract(PAIRS, model=model, out=out / folder_format, limit=1, **REQUEST)) == 1
    return out


@pytest.fixture
def run(runs, folder_format, tmp_path):
    return shutil.copytree(runs / folder_format, tmp_path / "run")


def resume(folder, run):
    return midsight.extract(PAIRS, model=midsight.load(folder, device="cpu"), out=run, **REQUEST)


def refused(folder, run):
    """The error has the beginning of both fingerprints, so that a user sees that they differ."""
    with pytest.raises(
        midsight.RunError,
        match=r"was started with model=.* \(SHA-256 [0-9a-f]{16}\), .* \(SHA-256 [0-9a-f]{16}\); ",
    ):
        resume(folder, run)


def test_an_unchanged_copy_at_another_path_is_the_same_model(folders, folder_format, run, tmp_path):
    """With other times of its files, and with files that no number comes from."""
    copy = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(folders[folder_format], copy, copy_function=shutil.copyfile)
    for name in ("README.md", "modeling_phi4mm.py", "LICENSE", ".gitattributes"):
        (copy / name).write_text("says nothing about the numbers")
    (copy / "figures").mkdir()
    (copy / "figures" / "speed.json").write_text("{}")
    assert len(resume(copy, run)) == 2


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_value_of_a_weight(folder, folder_format, run, place):
    """At the start, in the middle and at the end of a file, where its bytes are read."""
    path = folder / SHARDS[folder_format]
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    position = {"first": start, "middle": (start + len(data)) // 2 + 10, "last": len(data) - 2}[place]
    data[position] ^= 1
    replace_file(path, bytes(data))
    refused(folder, run)


def test_a_weight_trained_further(folder, folder_format, run):
    """Every weight a little, as any training leaves them."""

    def train(tensors):
        for tensor in tensors.values():
            tensor += 0.01

    edit_tensors(folder / SHARDS[folder_format], train)
    refused(folder, run)


def replace(path, old, new):
    """Text of the same length, so that the file's size says nothing."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    assert len(old) == len(new)
    replace_file(path, text.replace(old, new, 1).encode())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("config.json", '"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'),
        ("config.json", '"rope_theta": 10000.0', '"rope_theta": 10001.0'),
        ("preprocessor_config.json", '"dynamic_hd": 36', '"dynamic_hd": 12'),
        ("generation_config.json", "200020", "200021"),
        ("tokenizer_config.json", "131072", "131071"),
        ("tokenizer.json", '"single_word": false', '"single_word": true '),
    ],
)
def test_one_value_of_a_small_file(folder, run, name, old, new):
    replace(folder / name, old, new)
    refused(folder, run)


class TestVisionLora:
    """The vision LoRA of a folder in transformers' format: replaced, changed, taken away, merged."""

    @pytest.fixture
    def run(self, runs, tmp_path):
        return shutil.copytree(runs / "transformers", tmp_path / "run")

    def test_replaced(self, native, run, tmp_path):
        other = write_phi4_multimodal(tmp_path / "other", seed=1, layers=LAYERS, vision_heads=16)
        shutil.rmtree(native / "vision-lora")
        shutil.copytree(other / "vision-lora", native / "vision-lora")
        refused(native, run)

    def test_its_alpha(self, native, run):
        replace(native / "vision-lora" / "adapter_config.json", '"lora_alpha": 8', '"lora_alpha": 9')
        refused(native, run)

    def test_one_of_its_values(self, native, run):
        path = native / "vision-lora" / "adapter_model.safetensors"
        tensors = load_file(path)
        tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"][0, 0] += 1
        path.unlink()
        save_file(tensors, path, {"format": "pt"})
        refused(native, run)

    def test_taken_away(self, native, run):
        shutil.rmtree(native / "vision-lora")
        refused(native, run)


def test_the_lora_left_out(folders, folder_format, run):
    """The folder is the same, what it computes is not."""
    model = midsight.load(folders[folder_format], device="cpu", lora="off")
    with pytest.raises(midsight.RunError, match="lora='merged', and this call has lora='off'; "):
        midsight.extract(PAIRS, model=model, out=run, **REQUEST)


def test_the_same_weights_in_another_format(folders, runs, tmp_path):
    """Nobody has compared them, so they are another model to a run."""
    run = shutil.copytree(runs / "transformers", tmp_path / "run")
    refused(folders["published phi4mm"], run)
