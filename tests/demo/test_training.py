"""demo/train.py: a few steps of every stage; a second run writes the same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from midsight.demo.seeing import PACKED

TRAIN = Path(__file__).parents[2] / "demo" / "train.py"
FILES = ("tower.safetensors", "decoder.safetensors", "doubt.safetensors", "sight.safetensors", "packed.safetensors")


def run_trial(folder, seed, *stages):
    arguments = [*stages, "--trial", "--seed", str(seed), "--folder", str(folder), "--packed", str(folder / FILES[-1])]
    done = subprocess.run(
        [sys.executable, str(TRAIN), *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    first, again = run_trial(tmp_path / "first", 0), run_trial(tmp_path / "again", 0)
    assert sorted(first) == sorted(again) == sorted(FILES)
    assert [name for name in FILES if first[name] != again[name]] == []
    assert run_trial(tmp_path / "other", 1, "decoder")["decoder.safetensors"] != first["decoder.safetensors"]

    packed, shipped = load_file(tmp_path / "first" / FILES[-1]), load_file(PACKED)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in packed.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in shipped.items()
    }
    for stage in ("tower", "decoder", "doubt", "sight"):
        last = json.loads((tmp_path / "first" / f"{stage}.log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert last["cpu_seconds"] > 0
