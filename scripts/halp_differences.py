"""Measures how far the HALP scripts' vectors are from midsight's, on small random checkpoints; writes docs/halp.md.

The scripts' rules for positions and layers are written anew here, from what their code was read to do; none of it is
used. Both sides see the same image, question and transformers model, so that only the rules differ.
Run from the repository root: OMP_NUM_THREADS=1 .venv/bin/python scripts/halp_differences.py
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np

import midsight
from midsight.extraction.request import Request, resolve
from midsight.records import PROCESSOR_POOLED_PIXELS, VISION_ONLY
from midsight.samples.sample import Sample
from midsight.taps.tap import choose_layers
from midsight.testing.llava import TILE_PX
from support.family_reference import FAMILIES, Family
from support.parity import extract_records, rgb
from support.pictures import encoded, picture
from support.reference import Forward, relative_error

PAGE = Path(__file__).parents[1] / "docs" / "halp.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
QUESTIONS = ("Is there a dog?", "How many red things are on the table next to the window, and is one of them a cup?")
IMAGES = ((640, 480), (300, 900))
"""Sizes in pixels."""
Figure = tuple[str, float]
"""What was compared, and the relative error."""
AS_PIXELS = "vision-only, as processor_pooled_pixels"


@dataclass(frozen=True)
class Prompt:
    """A prompt as transformers' processor makes it."""

    inputs: Any
    """What the model takes."""
    image_indices: np.ndarray
    """Indices of the image tokens, int64."""
    length: int
    """Tokens."""


@dataclass(frozen=True)
class Rule:
    """What one script does."""

    script: str
    """The model that it is for."""
    layers: str
    """`normed`, `raw` or `early`: which state is called layer k."""
    vision_index: Callable[[Prompt], int]
    """Where it reads the vision token."""
    query_index: Callable[[Prompt], int] = lambda prompt: prompt.length - 1
    """Where it reads the query token."""
    vision_only: Callable[..., Any] | None = None
    """Its mean of the vision tower's output, if that is not midsight's."""
    vision_only_name: str = "vision-only"
    """What its row is called."""
    no_counterpart: str = ""
    """Why its vision-only vector is compared with nothing; empty if it is compared."""
    two_begins: bool = False
    """Whether the template's first token is added once more."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the image processor: so many tiles that every prompt reaches the smallest index that is guessed."""


def last_image_token(prompt: Prompt) -> int:
    """The right one."""
    return int(prompt.image_indices[-1])


def guess_by_patches(prompt: Prompt) -> int:
    """Qwen2.5-VL: the number of patches, or half of the prompt."""
    return min(int(prompt.inputs["image_grid_thw"][0].prod()), prompt.length // 2)


def mean_over_all_tiles(output: Any, *_: Any) -> Any:
    """Llama 3.2: padding tiles too."""
    return output.last_hidden_state[0].flatten(0, 2).double().mean(dim=0)


RULES = {
    "phi4_multimodal": Rule("Phi-4", "normed", last_image_token, vision_only_name=AS_PIXELS),
    "mllama": Rule("Llama 3.2", "normed", last_image_token, vision_only=mean_over_all_tiles, two_begins=True),
    "gemma3": Rule("Gemma 3", "raw", lambda prompt: min(255, prompt.length // 2), two_begins=True),
    "qwen2_5_vl": Rule("Qwen2.5-VL", "raw", guess_by_patches),
    "smolvlm": Rule(
        "SmolVLM2",
        "early",
        lambda prompt: min(max(200, prompt.length // 4), 800),
        vision_only_name="vision-only, where it is after the encoder's last norm",
        settings={"size": {"longest_edge": 8 * TILE_PX}},
    ),
    "llava_next": Rule(
        "LLaVA-NeXT",
        "early",
        lambda prompt: min(max(400, prompt.length // 3), 1500),
        no_counterpart="not compared: one number per image token",
        settings={"image_grid_pinpoints": [[rows * TILE_PX, 36 // rows * TILE_PX] for rows in (4, 6, 9)]},
    ),
    "fast_vlm": Rule(
        "FastVLM",
        "early",
        lambda prompt: int(prompt.image_indices[0]),
        lambda prompt: prompt.length - len(prompt.image_indices),
    ),
    "molmo": Rule(
        "Molmo",
        "raw",
        lambda prompt: last_image_token(prompt) + 1,
        no_counterpart="not compared: in the decoder's width",
    ),
}
"""By the family's key in the suite."""


def prompt_of(reference: Any, image: bytes, question: str, *, two_begins: bool) -> Prompt:
    """The prompt of one script, with the template's first token twice where it has it twice."""
    inputs = reference.inputs([rgb(image)], question)
    if two_begins:
        processor = reference.processor
        begin = processor.tokenizer.convert_ids_to_tokens(int(inputs["input_ids"][0, 0]))
        text = begin + reference.prompt(1, question)
        inputs = processor(text=text, images=[rgb(image)], return_tensors="pt", add_special_tokens=False)
    ids = inputs["input_ids"][0].numpy()
    return Prompt(inputs, np.flatnonzero(ids == reference.image_token_id), len(ids))


def state(forward: Forward, rule: Rule, layer: int, index: int) -> np.ndarray:
    """The state that the script calls layer k, at an index."""
    last = len(forward.hidden_states) - 2
    if rule.layers == "raw" and layer == last:
        return forward.last_residual[index]
    return forward.hidden_states[layer + (rule.layers != "early")][index]


def compare(rule: Rule, forward: Forward, prompt: Prompt, ours: Mapping[str, np.ndarray]) -> Iterator[Figure]:
    """The errors of one sample: vision-only, then each position and layer."""
    if rule.vision_only_name == AS_PIXELS:
        pixels = prompt.inputs["image_pixel_values"].numpy().mean(1).mean(1).mean(1)[0]
        yield AS_PIXELS, relative_error(pixels, ours[PROCESSOR_POOLED_PIXELS])
    elif not rule.no_counterpart:
        yield rule.vision_only_name, relative_error(forward.vision_mean, ours[VISION_ONLY])
    n = len(forward.hidden_states) - 1
    for position, index in (("vision", rule.vision_index(prompt)), ("query", rule.query_index(prompt))):
        for layer in choose_layers("default", n):
            vector, column = state(forward, rule, layer, index), f"{position}_token_representation.layer_"
            place = "last layer" if layer == n - 1 else "layer 0" if layer == 0 else "other layers"
            yield f"{position} token, {place}", relative_error(vector, ours[f"{column}{layer}"])
            if layer == n - 1 and rule.layers == "raw":
                against = f"{position} token, last layer, against layer_{layer}_residual"
                yield against, relative_error(vector, ours[f"{column}{layer}_residual"])
            if layer > 0 and rule.layers == "early":
                against = f"{position} token, all but layer 0, against layer k-1"
                yield against, relative_error(vector, ours[f"{column}{layer - 1}"])


def errors_of(rule: Rule, family: Family, folder: Path) -> dict[str, list[float]]:
    """Relative errors by what they are of, over images and questions."""
    theirs = replace(family, vision_mean=rule.vision_only) if rule.vision_only else family
    reference, model = theirs.reference(folder, theirs), midsight.load(folder, device="cpu")
    pixels = rule.vision_only_name == AS_PIXELS
    request = Request(layers="all", residual=True, answers=False, processor_pooled_pixels=pixels)
    found: dict[str, list[float]] = {}
    for size in IMAGES:
        for question in QUESTIONS:
            image = encoded(picture(size, sum(size)))
            sample = Sample("one", 0, (image,), question)
            (record,) = extract_records(model, resolve(request, model.loaded), [sample])
            prompt = prompt_of(reference, image, question, two_begins=rule.two_begins)
            for name, error in compare(rule, reference.forward(prompt.inputs), prompt, record.vectors):
                found.setdefault(name, []).append(error)
    return found


def rows_of(rule: Rule, family: Family, folder: Path) -> list[str]:
    """The rows of one script."""
    found = {name: shown(errors) for name, errors in errors_of(rule, family, folder).items()}
    if rule.no_counterpart:
        found = {rule.vision_only_name: rule.no_counterpart, **found}
    return [f"| {rule.script} | {name} | {what} |" for name, what in found.items()]


def shown(errors: list[float]) -> str:
    """The smallest and the largest error."""
    low, high = (
        "0" if value == 0 else f"{value:.0e}" if value < 1e-2 else f"{value:.2f}"
        for value in (min(errors), max(errors))
    )
    return low if low == high else f"{low} to {high}"


def write_model(rule: Rule, family: Family, folder: Path) -> None:
    """The family's small checkpoint, with the rule's settings in every file that has them."""
    family.write(folder)
    for path in (folder / "config.json", folder / "processor_config.json"):
        content = json.loads(path.read_text(encoding="utf-8")) if rule.settings else {}
        for values in (content, content.get("image_processor", {})):
            values.update({name: value for name, value in rule.settings.items() if name in values})
        if content:
            path.write_text(json.dumps(content), encoding="utf-8")


def measure() -> list[str]:
    """The lines between the marks."""
    lines = ["| script for | column | relative error |", "| --- | --- | --- |"]
    absent = []
    for key, rule in RULES.items():
        if key not in FAMILIES:
            absent.append(rule.script)
            continue
        with tempfile.TemporaryDirectory() as folder:
            write_model(rule, FAMILIES[key], Path(folder) / "model")
            lines += rows_of(rule, FAMILIES[key], Path(folder) / "model")
    if absent:
        lines += ["", f"Not measured, because midsight does not have the family: {', '.join(absent)}."]
    return lines


def main() -> None:
    """Replaces the figures of the page."""
    started = time.process_time()
    lines = measure()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) :]
    PAGE.write_text("\n".join([f"{before}{BEGIN}", *lines, after]), encoding="utf-8")
    print("\n".join(lines))
    print(f"{time.process_time() - started:.0f} s of CPU time")


if __name__ == "__main__":
    main()
