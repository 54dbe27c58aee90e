"""Runs the parity suite with the oldest and the newest libraries that pyproject.toml permits; writes docs/versions.md.

Each runs in an environment of its own, .venv-oldest and .venv-newest, which uv installs from its cache where it can.
Run from the repository root: make test-versions, or .venv/bin/python scripts/test_versions.py [oldest|newest ...]
"""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}
TESTS = (
    "tests/families/test_family_parity.py",
    "tests/families/test_family_prompts.py",
    "tests/families/test_family_folders.py",
    "tests/families/test_saved_folders.py",
    "tests/families/test_adapters.py",
    "tests/families/test_device_map.py",
    "tests/checkpoints/test_generation_settings.py",
    "tests/store/test_store_roundtrip.py",
    "tests/store/test_store_odd_run.py",
    "tests/store/test_store_other_tools.py",
    "tests/samples/test_images.py",
)
"""The parity of every family, in every way of loading it; what pyarrow and Pillow do for it; runs in other tools."""
LEFT_OUT = "TestEveryCase"
"""Phi-4's largest images in every batch size, which would take as long as all the rest."""
SHOWN = ("transformers", "torch", "torchvision", "pyarrow", "pillow", "accelerate", "huggingface-hub", "numpy")
TEST_TOOLS = (
    "pytest>=8.2",
    "pytest-xdist>=3.8",
    "hypothesis>=6.150",
    "peft>=0.21",
    "duckdb>=1.3",
    "fastparquet>=2026.9",
)
"""With lower bounds of their own, so that installing them changes no other version."""
EXTRAS = "datasets,fastvlm,hdf5,pandas,polars,smolvlm"
START, END = "<!-- written by make test-versions -->", "<!-- end -->"


def main() -> int:
    """Exit code 1 if a suite fails; the page is written only if all pass."""
    chosen = sys.argv[1:] or list(RESOLUTIONS)
    rows = [run_suite(name, RESOLUTIONS[name]) for name in chosen]
    if any(row is None for row in rows):
        return 1
    if set(chosen) == set(RESOLUTIONS):
        write_page([row for row in rows if row is not None])
    return 0


def run_suite(name: str, resolution: str) -> list[str] | None:
    """The row of the page for one environment: its versions and the result; None if a test failed."""
    python = make_environment(ROOT / f".venv-{name}", resolution)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    command = [str(python), "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-k", f"not {LEFT_OUT}", *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)  # noqa: S603
    sys.stdout.write(done.stdout)
    passed = re.search(r"(\d+) passed", done.stdout)
    if done.returncode or passed is None:
        return None
    versions = installed(python)
    return [name, *(versions[each] for each in SHOWN), f"{passed[1]} passed"]


def make_environment(folder: Path, resolution: str) -> Path:
    """An environment with midsight's own requirements at one end of what they permit; returns its interpreter."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    python = folder / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [*install, "--resolution", resolution, *TEST_TOOLS, "--editable", f"{ROOT}[{EXTRAS}]"],
    ):
        subprocess.run(command, check=True, cwd=ROOT)  # noqa: S603
    return python


def installed(python: Path) -> dict[str, str]:
    """Version by package."""
    program = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    done = subprocess.run([str(python), "-c", program], check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


def write_page(rows: list[list[str]]) -> None:
    """Replaces the table of the page."""
    columns = ["", *SHOWN, "parity suite"]
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    day, python = datetime.datetime.now(datetime.UTC).date().isoformat(), platform.python_version()
    text = PAGE.read_text(encoding="utf-8")
    head, tail = text.partition(START)[0], text.partition(END)[2]
    PAGE.write_text(f"{head}{START}\n{day}, Python {python}:\n\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
