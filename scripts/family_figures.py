"""Measures the figures in docs/models.md, on small random checkpoints.

Run from the repository root: .venv/bin/python scripts/family_figures.py
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch
from parity_figures import compare

import midsight
from midsight import Model
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import Request, resolve
from midsight.families.family import Pixels
from midsight.families.inputs import ImageInputs, sequential_positions
from midsight.records import VISION_ONLY
from midsight.taps.tap import POSITIONS
from support.damages import declaring
from support.family_reference import FAMILIES, FamilyReference
from support.parity import Expected, expect, extract_records, samples_of
from support.pictures import CASES, Case
from support.reference import relative_error

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=16)
NO_ANSWERS = Request(layers="all", positions=POSITIONS, answers=False)


def off_by(model: Model, expected: dict[str, Expected], *names: str) -> str:
    """Smallest and largest error of a damaged model's vectors over all cases."""
    records = extract_records(model, resolve(NO_ANSWERS, model.loaded), samples_of(CASES))
    errors = [relative_error(r.vectors[name], expected[r.sample_id].vectors[name]) for r in records for name in names]
    return f"{100 * min(errors):.2g} to {100 * max(errors):.2g} %"


def llama_traps(model: Model, uncorrected: FamilyReference, expected: dict[str, Expected]) -> None:
    """Prints the errors that the traps of Llama 3.2 Vision cause on the small checkpoint."""
    vision = model.loaded.family.vision

    def all_tiles(image):
        return torch.ones_like(vision.useful_patches(image))

    def without_class_token(image):
        useful = vision.useful_patches(image)
        useful[:, 0] = False
        return useful

    last = f"query_token_representation.layer_{model.loaded.n_layers - 1}"
    print(f"padding tiles in the mean: {off_by(declaring(model, useful_patches=all_tiles), expected, VISION_ONLY)}")
    damaged = declaring(model, useful_patches=without_class_token)
    print(f"no CLS in the mean: {off_by(damaged, expected, VISION_ONLY)}")
    errors = [
        relative_error(
            expect(uncorrected, [case.image], case.question).vectors[last], expected[case.name].vectors[last]
        )
        for case in CASES
    ]
    print(f"transformers without the fix, {last}: {100 * min(errors):.2g} to {100 * max(errors):.2g} %")


def inputs_of(model: Model, case: Case, pixels: Pixels) -> ImageInputs:
    """The encoder's inputs for the image of a case."""
    (prepared,) = prepare(model.loaded, resolve(Request(pixels=pixels), model.loaded), samples_of([case]))
    if not isinstance(prepared, PreparedSample):
        raise SystemExit(prepared.reason)
    return prepared.images[0]


def main() -> None:
    """Prints parity and traps of each family."""
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            family.write(folder)
            reference, model = FamilyReference(Path(folder), family), midsight.load(folder, device="cpu")
            uncorrected = FamilyReference(Path(folder), family, fixed=False)
        print(name)
        expected = {case.name: expect(reference, [case.image], case.question) for case in CASES}
        compare(model, expected, EVERYTHING)
        shares, levels = [], []
        for case in CASES:
            pil, tensors = (inputs_of(model, case, "pil"), inputs_of(model, case, "transformers"))
            difference = (pil.pixel_values - tensors.pixel_values).abs().numpy()
            shares.append((difference > 1e-4).mean())
            levels.append(difference.max() * 255 * 0.27)
        print(
            f"pixels that differ between pil and transformers: {100 * np.min(shares):.2g} to "
            f"{100 * np.max(shares):.2g} %, by up to {np.max(levels):.1f} levels"
        )
        query = [f"query_token_representation.layer_{k}" for k in range(model.loaded.n_layers)]
        if name == "mllama":
            llama_traps(model, uncorrected, expected)
        elif name.startswith("qwen"):
            damaged = declaring(model, positions=sequential_positions)
            print(f"positions as for text, query token: {off_by(damaged, expected, *query)}")


if __name__ == "__main__":
    main()
