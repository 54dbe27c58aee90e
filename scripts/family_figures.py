"""Measures the figures in docs/models.md for Llama 3.2 Vision, Qwen2.5-VL and Qwen2-VL, on small random checkpoints.

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
from damages import declaring
from family_reference import FAMILIES, FamilyReference
from midsight import Model
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.models.adapter import count_up
from midsight.records import VISION_ONLY
from midsight.taps.tap import POSITIONS
from parity import Expected, expect, extract_records, samples_of
from pictures import CASES
from reference import relative_error

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=16)
NO_ANSWERS = Request(layers="all", positions=POSITIONS, answers=False)


def off_by(model: Model, expected: dict[str, Expected], *names: str) -> str:
    """How far the vectors of a damaged model are off, smallest and largest over all cases."""
    records = extract_records(model, resolve(NO_ANSWERS, model.loaded), samples_of(CASES))
    errors = [relative_error(r.vectors[name], expected[r.sample_id].vectors[name]) for r in records for name in names]
    return f"{100 * min(errors):.2g} to {100 * max(errors):.2g} %"


def llama_traps(model: Model, unmended: FamilyReference, expected: dict[str, Expected]) -> None:
    """What the traps of Llama 3.2 Vision cost on the small checkpoint."""
    adapter = model.loaded.adapter

    def all_tiles(image):
        return torch.ones_like(adapter.useful_patches(image))

    def without_class_token(image):
        useful = adapter.useful_patches(image)
        useful[:, 0] = False
        return useful

    last = f"query_token_representation.layer_{model.loaded.n_layers - 1}"
    print(f"padding tiles in the mean: {off_by(declaring(model, useful_patches=all_tiles), expected, VISION_ONLY)}")
    damaged = declaring(model, useful_patches=without_class_token)
    print(f"no CLS in the mean: {off_by(damaged, expected, VISION_ONLY)}")
    errors = [
        relative_error(expect(unmended, [case.image], case.question).vectors[last], expected[case.name].vectors[last])
        for case in CASES
    ]
    print(f"transformers as it is, {last}: {100 * min(errors):.2g} to {100 * max(errors):.2g} %")


def main() -> None:
    """Prints parity and traps of each family."""
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            family.write(folder)
            reference, model = FamilyReference(Path(folder), family), midsight.load(folder, device="cpu")
            unmended = FamilyReference(Path(folder), family, mended=False)
        print(name)
        expected = {case.name: expect(reference, [case.image], case.question) for case in CASES}
        compare(model, expected, EVERYTHING)
        shares, levels = [], []
        for case in CASES:
            pil, tensors = (
                prepare(model.loaded, resolve(Request(pixels=pixels), model.loaded), samples_of([case]))[0].images[0]
                for pixels in ("pil", "transformers")
            )
            difference = (pil.pixel_values - tensors.pixel_values).abs().numpy()
            shares.append((difference > 1e-4).mean())
            levels.append(difference.max() * 255 * 0.27)
        print(
            f"pixels that pil and transformers make differently: {100 * np.min(shares):.2g} to "
            f"{100 * np.max(shares):.2g} %, by up to {np.max(levels):.1f} levels"
        )
        query = [f"query_token_representation.layer_{k}" for k in range(model.loaded.n_layers)]
        if name == "mllama":
            llama_traps(model, unmended, expected)
        else:
            damaged = declaring(model, positions=count_up)
            print(f"positions counted like text, query token: {off_by(damaged, expected, *query)}")


if __name__ == "__main__":
    main()
