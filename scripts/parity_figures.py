"""Measures the figure in docs/numbers.md: the largest relative error over all parity cases and batches.

Run from the repository root: .venv/bin/python scripts/parity_figures.py
"""

import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import midsight
from midsight import Model
from midsight.extraction.request import Request, resolve
from midsight.testing import write_phi4_multimodal
from support.parity import EVERYTHING, Expected, answer_ids, expect, extract_records, samples_of
from support.pictures import CASES
from support.reference import Reference, relative_error


def compare(model: Model, expected: dict[str, Expected], request: Request) -> None:
    """Prints the largest error by kind of vector, and how many answers agreed."""
    resolved = resolve(request, model.loaded)
    worst: dict[str, float] = {}
    vectors = answers = agreeing = 0
    started = time.time()
    for batch_size in (1, 2, 3, 7, 8):
        for side in ("left", "right"):
            samples = samples_of(CASES)
            random.Random(f"{batch_size}{side}").shuffle(samples)  # noqa: S311  (no secret)
            for start in range(0, len(samples), batch_size):
                for record in extract_records(model, resolved, samples[start : start + batch_size], padding_side=side):
                    wanted = expected[record.sample_id]
                    for name, vector in wanted.vectors.items():
                        kind = name.partition(".")[0]
                        worst[kind] = max(worst.get(kind, 0.0), relative_error(record.vectors[name], vector))
                        vectors += 1
                    answers += 1
                    agreeing += answer_ids(record) == wanted.answer_token_ids
    print(f"{vectors} vectors compared, {agreeing} of {answers} answers agree, {time.time() - started:.0f} s")
    for kind, error in worst.items():
        print(f"{kind}: {error:.1e}")


def main() -> None:
    """Prints the figures of Phi-4-multimodal."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_phi4_multimodal(folder)
        reference = Reference(checkpoint)
        model = midsight.load(checkpoint, device="cpu")
    expected = {case.name: expect(reference, [case.image], case.question) for case in CASES}
    compare(model, expected, EVERYTHING)


if __name__ == "__main__":
    main()
