"""Model folders for tests: the published files, small checkpoints, and edits of both."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import midsight
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.phi4mm import publish

FACTS = Path(os.environ.get("MIDSIGHT_FACTS", Path(__file__).parents[3] / "shared" / "facts")) / "phi4mm"
needs_facts = pytest.mark.skipif(
    not FACTS.is_dir(), reason="the published Phi-4 files are not here; set MIDSIGHT_FACTS"
)
LAYERS = 2
INDEX = "model.safetensors.index.json"
Tensors = dict[str, Tensor]


def write_native(folder: Path) -> Path:
    """A small checkpoint in transformers' format, with the published number of vision heads."""
    return write_phi4_multimodal(folder, layers=LAYERS, vision_heads=16)


def write_published(folder: Path, native: Path) -> Path:
    """The same weights in the published format."""
    folder.mkdir()
    publish(native, folder)
    return folder


def copy_folder(source: Path, target: Path) -> Path:
    """A copy that tests may damage; its files are hard links until they are replaced."""
    return shutil.copytree(source, target, copy_function=os.link)


def replace_file(path: Path, content: bytes) -> None:
    """Replaces a file of a copied folder, and leaves the original alone."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def edit_json(path: Path, edit: Callable[[Any], object]) -> None:
    """Changes a JSON file of a copied folder."""
    content = read_json(path)
    edit(content)
    replace_file(path, json.dumps(content).encode())


def edit_tensors(path: Path, edit: Callable[[Tensors], object]) -> None:
    """Changes the tensors of one safetensors file of a copied folder."""
    tensors = load_file(path)
    edit(tensors)
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def load_all(folder: Path) -> Tensors:
    """Every tensor of the folder's own safetensors files."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def edit_published(folder: Path, edit: Callable[[Tensors], object]) -> None:
    """Changes tensors of a copied published folder; afterwards one file has them all, and the index says so."""
    tensors = load_all(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    edit(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    replace_file(folder / INDEX, json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}).encode())


def published_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the folder's own safetensors files, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


def write_published_size(folder: Path) -> Path:
    """The published folder at its full size, 11 GB, in sparse files: headers without weights.

    It takes a few hundred KB on disk. Shapes and file names are those of the published index.
    """
    shapes, index = read_json(FACTS / "tensor_shapes.json"), read_json(FACTS / INDEX)["weight_map"]
    folder.mkdir()
    for name in ("config.json", INDEX, "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(FACTS / name, folder)
    shutil.copy(FACTS / "generation_config.json", folder)
    for shard in sorted(set(index.values())):
        write_sparse(folder / shard, {name: shapes[name] for name in index if index[name] == shard})
    return folder


def write_sparse(path: Path, shapes: dict[str, list[int]]) -> None:
    """A sparse safetensors file: a header for bfloat16 tensors, and no data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def said_by(call: Callable[..., object], *args: Any, **options: Any) -> str | None:
    """The sentence of a call's MidsightError; None if the call succeeds. Other exceptions are not caught."""
    try:
        call(*args, **options)
    except midsight.MidsightError as error:
        return str(error)
    return None


def assert_sentence(said: str) -> None:
    """One sentence on one line, not too long for a terminal."""
    assert "\n" not in said
    assert re.search(r"[^.!?]\.$", said), said
    assert len(said) < 500


def refuse(folder: Path, *names: str) -> None:
    """Asserts that loading the folder raises one sentence that contains all the names."""
    said = said_by(midsight.load, folder, device="cpu")
    assert said is not None, f"{folder} loads"
    assert_sentence(said)
    for name in names:
        assert name in said


def let_layers_slide(folder: Path, *, window: int, full_layers: int) -> None:
    """Makes the layers of a Qwen2-VL after the first `full_layers` read only the last `window` tokens."""

    def edit(config: Any) -> None:
        config["text_config"] |= {
            "use_sliding_window": True,
            "sliding_window": window,
            "max_window_layers": full_layers,
        }
        del config["text_config"]["layer_types"]

    edit_json(folder / "config.json", edit)


def let_tokenizer_add(folder: Path, token: str) -> None:
    """Makes the tokenizer put a token before every text."""
    content = read_json(folder / "tokenizer.json")
    first = next(one for one in content["added_tokens"] if one["content"] == token)
    named = {"id": token, "ids": [first["id"]], "tokens": [token]}
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]
    rule = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {token: named}}
    (folder / "tokenizer.json").write_text(json.dumps({**content, "post_processor": rule}), encoding="utf-8")
