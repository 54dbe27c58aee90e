"""Damaged model folders: one sentence that names the file or the tensor, in both formats."""

import json
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import midsight
from midsight.checkpoints.headers import read_headers
from midsight.checkpoints.open_folder import open_checkpoint
from support.folders import INDEX, assert_sentence, copy_folder, edit_json, refuse, replace_file, said_by

SHARDS = {"transformers": "model.safetensors", "published phi4mm": "model-00002-of-00003.safetensors"}
LORA = "vision-lora/adapter_model.safetensors"


def header_of(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    replace_file(path, len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 200, 0.5, -1])
def test_a_safetensors_file_cut_short(folder, folder_format, kept):
    """In the length, in the header, in the data, by one byte; a fraction is of the whole file."""
    path = folder / SHARDS[folder_format]
    data = path.read_bytes()
    replace_file(path, data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refuse(folder, f"; download {path.name} again.")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_lora_file_cut_short(folders, tmp_path, kept):
    folder = copy_folder(folders["transformers"], tmp_path / "model")
    replace_file(folder / LORA, (folder / LORA).read_bytes()[:kept])
    refuse(folder, LORA, "; download adapter_model.safetensors again.")


def test_a_safetensors_file_with_bytes_behind_its_data(folder, folder_format):
    path = folder / SHARDS[folder_format]
    replace_file(path, path.read_bytes() + b"\0" * 64)
    refuse(folder, path.name)


def test_a_git_lfs_pointer_in_place_of_the_weights(folder, folder_format):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 4997504848\n"
    replace_file(folder / SHARDS[folder_format], text.encode())
    refuse(folder, SHARDS[folder_format])


HEADERS = {
    "not JSON": lambda header: b"{" * 64,
    "not an object": lambda header: b"[1, 2]" + b" " * 58,
    "not UTF-8": lambda header: b"\xff" * 64,
    "a tensor that is not an object": lambda header: {**header, next(iter(header)): 3},
    "empty": lambda header: {},
    "no such dtype": lambda header: change_first(header, dtype="Q7"),
    "a shape that does not fit its bytes": lambda header: change_first(header, shape=[7, 7, 7]),
    "a negative size": lambda header: change_first(header, shape=[-1, 4]),
    "sizes whose product overflows": lambda header: change_first(header, shape=[2**40, 2**40]),
    "offsets out of the file": lambda header: change_first(header, data_offsets=[10**12, 10**12 + 64]),
    "offsets that run backwards": lambda header: change_first(header, data_offsets=[64, 0]),
    "offsets of another tensor": lambda header: change_first(
        header, **{key: list(header.values())[-1][key] for key in ("data_offsets", "shape")}
    ),
    "no offsets": lambda header: {**header, first(header): {"dtype": "BF16", "shape": [1]}},
}


def first(header):
    return next(name for name in header if name != "__metadata__")


def change_first(header, **changes):
    return {**header, first(header): {**header[first(header)], **changes}}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_lies(folder, folder_format, kind):
    path = folder / SHARDS[folder_format]
    header, data = header_of(path)
    with_header(path, HEADERS[kind](header), data)
    refuse(folder, *([path.name] if kind != "empty" else []))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_weights_whose_scale_is_elsewhere(folder, folder_format, dtype):
    """Read as they stand they would be another model's."""
    path = folder / SHARDS[folder_format]
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dim() == 2)
    path.unlink()
    save_file({**tensors, name: tensors[name].to(dtype)}, path, {"format": "pt"})
    refuse(folder, path.name, name, "quantised")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1, 10**8])
def test_an_absurd_length_of_the_header(folder, folder_format, length):
    path = folder / SHARDS[folder_format]
    replace_file(path, length.to_bytes(8, "little") + path.read_bytes()[8:])
    refuse(folder, path.name)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_whatever_happens_to_a_header_only_a_midsight_error_comes_out(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / "model.safetensors"
    save_file({"a.weight": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    path.write_bytes(content)
    assert_sentence(said_by(read_headers, folder) or "It is complete.")
    shutil.rmtree(folder)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("folder_format", SHARDS)
def test_whatever_happens_to_a_header_opening_raises_nothing_else(folders, folder_format, tmp_path_factory, data):
    folder = copy_folder(folders[folder_format], tmp_path_factory.mktemp("fuzz") / "model")
    path = folder / (LORA if folder_format == "transformers" else SHARDS[folder_format])
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    replace_file(path, bytes(content))
    assert_sentence(said_by(lambda: open_checkpoint(folder).account()) or "It is complete.")
    shutil.rmtree(folder.parent)


def test_a_shard_missing(folders, tmp_path):
    folder = copy_folder(folders["published phi4mm"], tmp_path / "model")
    (folder / SHARDS["published phi4mm"]).unlink()
    refuse(folder, SHARDS["published phi4mm"], "index")


def test_a_shard_missing_of_a_native_folder(folders, tmp_path):
    folder = sharded(folders["transformers"], tmp_path / "model")
    assert midsight.load(folder, device="cpu").loaded.format == "transformers"
    (folder / "model-2.safetensors").unlink()
    refuse(folder, "model-2.safetensors", "index")


def sharded(source, folder):
    """A native folder with its tensors in two files and an index."""
    copy_folder(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {name: f"model-{1 + (n > 40)}.safetensors" for n, name in enumerate(names)}
    for file in sorted(set(index.values())):
        save_file({name: tensors[name] for name in names if index[name] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": index}))
    return folder


@pytest.fixture
def indexed(folders, folder_format, tmp_path):
    """A folder of either format that has an index, and one of its tensors."""
    folder = tmp_path / "model"
    if folder_format == "transformers":
        return sharded(folders[folder_format], folder), "model.norm.weight"
    return copy_folder(folders[folder_format], folder), "model.norm.weight"


def test_an_index_that_names_a_tensor_twice(indexed):
    folder, tensor = indexed
    text = (folder / INDEX).read_text()
    entry = next(line for line in re.findall(r'"[^"]+": "[^"]+"', text) if tensor in line)
    other = next(file for file in re.findall(r'"(model-[^"]+)"', text) if file not in entry)
    for twin in (entry, f'"{tensor}": "{other}"'):
        replace_file(folder / INDEX, text.replace(entry, f"{entry}, {twin}").encode())
        refuse(folder, INDEX, tensor, "twice")


def test_a_tensor_that_lies_in_two_files(indexed):
    folder, tensor = indexed
    files = sorted(path.name for path in folder.glob("model-*.safetensors"))
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    other = next(file for file in files if file != index[tensor])
    tensors = load_file(folder / other)
    (folder / other).unlink()
    save_file({**tensors, tensor: load_file(folder / index[tensor])[tensor]}, folder / other, {"format": "pt"})
    refuse(folder, tensor, other, index[tensor])


def edit_index(folder, edit):
    edit_json(folder / INDEX, lambda content: edit(content["weight_map"]))


def test_an_index_that_lacks_a_tensor_of_the_files(indexed):
    folder, tensor = indexed
    edit_index(folder, lambda index: index.pop(tensor))
    refuse(folder, tensor)


def test_an_index_with_a_tensor_that_no_file_has(indexed):
    folder, tensor = indexed
    edit_index(folder, lambda index: index.update({"model.surprise.weight": index[tensor]}))
    refuse(folder, "model.surprise.weight")


def test_an_index_that_names_the_wrong_file(indexed):
    folder, tensor = indexed
    edit_index(folder, lambda index: index.update({tensor: next(f for f in index.values() if f != index[tensor])}))
    refuse(folder, tensor)


@pytest.mark.parametrize("kind", ["parent", "absolute", "inside", "null", "number", "empty", "dot", "null byte"])
def test_an_index_that_points_elsewhere(indexed, tmp_path, kind):
    """The file exists and is not damaged; only its path is wrong."""
    folder, tensor = indexed
    outside = tmp_path / "x.safetensors"
    save_file({tensor: torch.ones(32)}, outside)
    (folder / "inside").mkdir()
    shutil.copyfile(outside, folder / "inside" / "x.safetensors")
    place = {
        "parent": "../x.safetensors",
        "absolute": str(outside),
        "inside": "inside/x.safetensors",
        "null": None,
        "number": 3,
        "empty": "",
        "dot": ".",
        "null byte": "x\0.safetensors",
    }
    edit_index(folder, lambda index: index.update({tensor: place[kind]}))
    refuse(folder, "index")


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"weight_map": 1}']
)
def test_an_index_that_is_not_usable(indexed, content):
    folder, _ = indexed
    replace_file(folder / INDEX, content.encode())
    refuse(folder)
