"""Measures the figures in docs/numbers.md: the difference between `--pixels transformers` and `--pixels pil`.

Compares the processor's pixels, and the outputs of the random checkpoint, on the parity tests' images and larger ones.
ATEN_CPU_CAPABILITY=default shows the result on machines without AVX2.
Run from the repository root: .venv/bin/python scripts/pixel_figures.py [--pixels-only]
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from PIL import Image

import midsight
from midsight import Model
from midsight.families.phi4_multimodal import image_inputs, resized_px
from midsight.records import VISION_ONLY
from midsight.testing import write_phi4_multimodal
from support.parity import rgb
from support.pictures import CASES, Case, encoded, picture
from support.reference import relative_error

LARGER = tuple(
    Case(f"{width} x {height}", encoded(picture((width, height), seed), "JPEG", quality=90), "What is in the picture?")
    for seed, (width, height) in enumerate(
        [(1920, 1080), (1280, 720), (2688, 2688), (2690, 2690), (4000, 3000), (6000, 1500)], 20
    )
)
LEVELS = 127.5
"""Levels, of 255, per unit of the processor's values."""
KINDS = (VISION_ONLY, "vision_token", "query_token")


@dataclass(frozen=True)
class PixelDifference:
    """Difference between two ways to resize one image, in levels of 255."""

    size: tuple[int, int]
    """Original width and height."""
    resized: tuple[int, int]
    """Width and height after resizing."""
    share: float
    """Share of the resized image's values that differ."""
    largest: float
    """Largest difference in the sub-crops."""
    largest_global: float
    """Largest difference in the global crop, which both ways make from the resized image: bicubic, in float32."""

    @property
    def direction(self) -> str:
        """Whether the image grew or shrank."""
        if self.size == self.resized:
            return "same"
        return "grows" if self.resized > self.size else "shrinks"


def compare_pixels(processor: object, image: Image.Image) -> PixelDifference:
    """Runs the processor on one image in both ways."""
    size = image.size
    resized = resized_px(*size, 448, 36)
    pil, tensors = (image_inputs(processor, image, pixels, None).pixel_values for pixels in ("pil", "transformers"))
    difference = (tensors - pil).abs() * LEVELS
    differing = (difference[1:].round() > 0).sum().item() / (3 * resized[0] * resized[1])
    return PixelDifference(size, resized, differing, difference[1:].max().item(), difference[0].max().item())


def compare_outputs(model: Model, case: Case) -> tuple[dict[str, tuple[float, str]], bool]:
    """The largest relative error and its layer by kind of vector, and whether the answers agree."""
    pil, tensors = (
        model.extract(case.image, case.question, pixels=pixels, layers="all", residual=True, max_new_tokens=16)
        for pixels in ("pil", "transformers")
    )
    worst = {}
    for kind in KINDS:
        found = {n: relative_error(tensors.vectors[n], pil.vectors[n]) for n in pil.vectors if n.startswith(kind)}
        name = max(found, key=found.__getitem__)
        worst[kind] = found[name], name.rpartition(".")[2]
    return worst, pil.answer_token_ids == tensors.answer_token_ids


def main() -> None:
    """Prints one line per image."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pixels-only", action="store_true", help="compare pixels only, without the model")
    options = parser.parse_args()
    print(f"torch's CPU kernels: {torch.backends.cpu.get_cpu_capability()}")
    with tempfile.TemporaryDirectory() as folder:
        model = midsight.load(write_phi4_multimodal(folder), device="cpu")
    overall: dict[tuple[str, str], float] = {}
    answers = agreeing = 0
    for case in (*CASES, *LARGER):
        pixels = compare_pixels(model.loaded.processor, rgb(case.image))
        line = (
            f"{case.name:19} {'x'.join(map(str, pixels.size)):>9} to {'x'.join(map(str, pixels.resized)):9} "
            f"{pixels.direction:7}  {pixels.share:8.3%} differ, by {pixels.largest:.2f} at most, "
            f"global crop {pixels.largest_global:.2f}"
        )
        if not options.pixels_only:
            worst, same = compare_outputs(model, case)
            line += "".join(
                f"  {kind.removesuffix('_representation')} {error:.1e} ({where})"
                for kind, (error, where) in worst.items()
            )
            line += "" if same else "  ANSWERS DIFFER"
            answers += 1
            agreeing += same
            for kind, (error, _) in worst.items():
                key = (pixels.direction, kind)
                overall[key] = max(overall.get(key, 0.0), error)
        print(line, flush=True)
    for (direction, kind), error in sorted(overall.items()):
        print(f"{direction}: {kind} {error:.1e}")
    if answers:
        print(f"{agreeing} of {answers} answers agree")


if __name__ == "__main__":
    main()
