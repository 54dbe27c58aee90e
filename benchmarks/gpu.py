"""Everything that needs a GPU, in one process and in eight minutes: `make gpu`, or with the small model DEVICE=cpu.

It needs what lies in this checkout and a Python with the packages of pyproject.toml, and says which of them are
missing. The model is a Phi-4-multimodal of full size, whose random weights are made on the device.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT_S = 480.0
"""Time limit of the whole script; what would begin after it is left out, and the report says so."""
LEAST_TORCH = (2, 11)


def main() -> None:
    """Measures, and writes gpu-DEVICE.json and gpu-DEVICE.md after every section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--size", help="demo, mid or full; by default full on a GPU, demo on a CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the report")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="time limit in seconds")
    chosen = parser.parse_args()
    if problems := missing_packages():
        sys.exit("\n".join(["This Python cannot measure:", *problems]))
    sys.path.insert(0, str(ROOT / "src"))
    import torch

    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no CUDA device; run this where there is one, or try it with DEVICE=cpu.")
    from benchmarks.gpu_sections import measure_all

    began = time.perf_counter()
    size = chosen.size or ("full" if chosen.device == "cuda" else "demo")
    measure_all(size, chosen.device, chosen.out, seconds_left=lambda: chosen.limit_s - (time.perf_counter() - began))


def missing_packages() -> list[str]:
    """The packages of pyproject.toml that are missing or have another version, one line each."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return [problem for problem in map(problem_of, required) if problem]


def problem_of(requirement: str) -> str:
    """What is wrong with the installed version of a requirement; empty if nothing is.

    A torch newer than the tested ones is tried.
    """
    name = re.split(r"[<>=\[;]", requirement)[0].strip()
    try:
        installed = version(name)
    except PackageNotFoundError:
        return f"{name} is missing; install {requirement}, from wheels with `pip install --no-index --find-links DIR`."
    least = numbers(requirement, ">=")
    most = numbers(requirement, "<")
    if name in ("torch", "torchvision"):
        least, most = (LEAST_TORCH if name == "torch" else least), None
    found = numbers(f"=={installed}", "==")
    if (least and found < least) or (most and found >= most):
        return f"{name} is {installed}; install {requirement}."
    return ""


def numbers(requirement: str, sign: str) -> tuple[int, ...]:
    """The numbers of a version after a sign; empty if the sign is not there."""
    found = re.search(rf"{re.escape(sign)}(\d+(?:\.\d+)*)", requirement)
    return tuple(map(int, found[1].split("."))) if found else ()


if __name__ == "__main__":
    main()
