"""What a plain installation brings is enough to load a model and to fill a run."""

import subprocess
import sys
import tomllib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PROGRAM = """
import sys
from importlib.machinery import PathFinder

folder, out, *foreign = sys.argv[1:]

class Required(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in foreign else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Required

import midsight
from PIL import Image

model = midsight.load(folder, device="cpu")
run = midsight.extract([(Image.new("RGB", (64, 48)), "What?")], model=model, out=out, max_new_tokens=2, progress=None)
print(len(run), "stored")
"""


def required() -> set[str]:
    """The distributions that midsight's own requirements bring."""
    todo = [Requirement(line) for line in tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]]
    found = set()
    while todo:
        one = todo.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in found:
            continue
        found.add(key)
        with suppress(PackageNotFoundError):
            needed = [Requirement(line) for line in requires(one.name) or ()]
            extras = ("", *one.extras)
            todo += [r for r in needed if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name, _ in found}


def foreign() -> set[str]:
    """Modules that are installed here and that a plain installation lacks."""
    names = required()
    installed = packages_distributions().items()
    return {module for module, owners in installed if not {canonicalize_name(owner) for owner in owners} & names}


@pytest.mark.slow
def test_a_model_is_loaded_and_a_run_is_filled_without_anything_else(folders, tmp_path):
    others = foreign()
    assert {"peft", "pytest", "datasets"} <= others
    command = [sys.executable, "-c", PROGRAM, str(folders["transformers"]), str(tmp_path / "run"), *sorted(others)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "1 stored\n", done.stderr[-2000:]
