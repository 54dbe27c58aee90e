"""Measures the figures in docs/models.md for Llama 3.2 Vision, Qwen2.5-VL and Qwen2-VL, on small random checkpoints.

Run from the repository root: .venv/bin/python scripts/family_figures.py
"""

import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import torch

import midsight
from family_reference import FAMILIES, FamilyReference
from midsight import Model
from midsight.extraction.prepare import prepare
from midsight.extraction.request import Request, resolve
from midsight.models.adapter import count_up
from midsight.records import VISION_ONLY
from midsight.taps.tap import POSITIONS
from parity import Expected, answer_ids, expect, extract_records, samples_of
from pictures import CASES
from reference import relative_error

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=16)
NO_ANSWERS = Request(layers="all", positions=POSITIONS, answers=False)


def compare(model: Model, expected: dict[str, Expected]) -> None:
    """Prints the largest error by kind of vector, and how many answers agreed."""
    plan = resolve(EVERYTHING, model.loaded)
    worst: dict[str, float] = {}
    vectors = answers = agreeing = 0
    started = time.time()
    for batch_size in (1, 2, 3, 7, 8):
        for side in ("left", "right"):
            samples = samples_of(CASES)
            random.Random(f"{batch_size}{side}").shuffle(samples)  # noqa: S311  (no secret)
            for start in range(0, len(samples), batch_size):
                for record in extract_records(model, plan, samples[start : start + batch_size], padding_side=side):
                    wanted = expected[record.sample_id]
                    for name, vector in wanted.vectors.items():
                        kind = name.partition(".")[0]
                        worst[kind] = max(worst.get(kind, 0.0), relative_error(record.vectors[name], vector))
                        vectors += 1
                    answers += 1
                    agreeing += answer_ids(record) == wanted.answer_token_ids
    print(f"  {vectors} vectors compared, {agreeing} of {answers} answers agree, {time.time() - started:.0f} s")
    for kind, error in worst.items():
        print(f"  {kind}: {error:.1e}")


def off_by(model: Model, expected: dict[str, Expected], *names: str) -> str:
    """How far the vectors of a damaged model are off, smallest and largest over all cases."""
    records = extract_records(model, resolve(NO_ANSWERS, model.loaded), samples_of(CASES))
    errors = [relative_error(r.vectors[name], expected[r.sample_id].vectors[name]) for r in records for name in names]
    return f"{100 * min(errors):.2g} to {100 * max(errors):.2g} %"


def declaring(model: Model, **declared: object) -> Model:
    """The model with declarations of its adapter replaced."""
    return replace(model, loaded=replace(model.loaded, adapter=replace(model.loaded.adapter, **declared)))


def llama_traps(model: Model, expected: dict[str, Expected]) -> None:
    """What the traps of Llama 3.2 Vision cost on the small checkpoint."""
    adapter = model.loaded.adapter

    def all_tiles(image):
        return torch.ones_like(adapter.useful_patches(image))

    def without_class_token(image):
        useful = adapter.useful_patches(image)
        useful[:, 0] = False
        return useful

    last = f"query_token_representation.layer_{model.loaded.n_layers - 1}"
    print(f"  padding tiles in the mean: {off_by(declaring(model, useful_patches=all_tiles), expected, VISION_ONLY)}")
    damaged = declaring(model, useful_patches=without_class_token)
    print(f"  no CLS in the mean: {off_by(damaged, expected, VISION_ONLY)}")

    plan = resolve(NO_ANSWERS, model.loaded)
    (item,) = prepare(model.loaded, plan, samples_of(CASES[:1]))
    before_image = item.prompt.layout.vision_token

    def silence_tokens_before_image(_module, _args, output):
        hidden, *rest = output
        hidden = hidden.clone()
        hidden[:, :before_image] = 0
        return (hidden, *rest)

    hf_model = model.loaded.hf_model
    layers = [hf_model.model.language_model.layers[i] for i in hf_model.config.text_config.cross_attention_layers]
    hooks = [layer.cross_attn.register_forward_hook(silence_tokens_before_image) for layer in layers]
    records = [extract_records(model, plan, [sample])[0] for sample in samples_of(CASES)]
    for hook in hooks:
        hook.remove()
    errors = [relative_error(record.vectors[last], expected[record.sample_id].vectors[last]) for record in records]
    print(f"  tokens before the image silenced, {last}: {100 * min(errors):.2g} to {100 * max(errors):.2g} %")


def main() -> None:
    """Prints parity and traps of each family."""
    for name, family in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            family.write(folder)
            reference, model = FamilyReference(Path(folder), family), midsight.load(folder, device="cpu")
        print(name)
        expected = {case.name: expect(reference, [case.image], case.question) for case in CASES}
        compare(model, expected)
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
            f"  pixels that pil and transformers make differently: {100 * np.min(shares):.2g} to "
            f"{100 * np.max(shares):.2g} %, by up to {np.max(levels):.1f} levels"
        )
        query = [f"query_token_representation.layer_{k}" for k in range(model.loaded.n_layers)]
        if name == "mllama":
            llama_traps(model, expected)
        else:
            damaged = declaring(model, positions=count_up)
            print(f"  positions counted like text, query token: {off_by(damaged, expected, *query)}")


if __name__ == "__main__":
    main()
