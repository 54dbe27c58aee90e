"""Damage done on purpose: a parity test has to fail with each of these."""

import dataclasses
from typing import Any

from midsight import Model
from midsight.extraction import decode, extract_call
from midsight.extraction.request import Request, resolve
from midsight.prompts.token_layout import TokenLayout
from midsight.taps import capture
from midsight.taps.tap import POSITIONS
from midsight.testing import check_family
from support.parity import assert_parity, expect, extract_records, samples_of
from support.pictures import CASES

EVERYTHING = Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=16)
DAMAGED_CASES = [CASES[0], CASES[1], CASES[3], CASES[4]]
"""One tile, one that is filled, two by two, and four in a line; grids of patches that are not squares."""
GROUPS = ("modules", "prompt", "vision", "decoder", "stored", "reference")


def declaring(model: Model, **declared: object) -> Model:
    """The model with some of its family's declarations replaced, whichever group they are in."""
    family = model.loaded.family
    for name, value in declared.items():
        group = next(group for group in GROUPS if hasattr(getattr(family, group), name))
        changed = dataclasses.replace(getattr(family, group), **{name: value})
        family = dataclasses.replace(family, **{group: changed})
    return dataclasses.replace(model, loaded=dataclasses.replace(model.loaded, family=family))


def compare_cases(model: Model, reference: Any) -> None:
    """Extracts the cases in one batch and asserts parity for each."""
    records = extract_records(model, resolve(EVERYTHING, model.loaded), samples_of(DAMAGED_CASES))
    for record, case in zip(records, DAMAGED_CASES, strict=True):
        assert_parity(record, expect(reference, [case.image], case.question))


def failing(model: Model, *sections: str) -> set[str]:
    """Names of the checks that fail in some sections of the proof."""
    checks = check_family(model, samples_of(DAMAGED_CASES), max_new_tokens=3, sections=sections)
    return {check.name for check in checks if not check.passed}


def shift_layers(monkeypatch, shift: int, last: int) -> None:
    """Every tap reads another layer, as far as there is one."""
    original = capture.tapped_module

    def shifted(hf_model, family, tap):
        return original(hf_model, family, dataclasses.replace(tap, layer=min(max(tap.layer + shift, 0), last)))

    monkeypatch.setattr(capture, "tapped_module", shifted)


def shift_position(monkeypatch, position: str, shift: int, last: int) -> None:
    """A position of every prompt lies elsewhere, at most at index `last`."""
    original = vars(TokenLayout)[position].fget
    monkeypatch.setattr(TokenLayout, position, property(lambda self: min(original(self) + shift, last)))


def count_padding_in_decode(monkeypatch) -> None:
    """Decode steps take padding for tokens when they count positions."""
    original = decode.feed_tokens

    def shifted(loaded, open_rows):
        state = open_rows.state
        padded = [state.prompt_ids.shape[1]] * len(state.lengths)
        stepped = original(loaded, decode.OpenRows(open_rows.answers, dataclasses.replace(state, lengths=padded)))
        return dataclasses.replace(stepped, lengths=[length + 1 for length in state.lengths])

    monkeypatch.setattr(decode, "feed_tokens", shifted)


def exchange_images(monkeypatch) -> None:
    """The samples of a batch get each other's images, in reverse order."""
    original = extract_call.encode_distinct
    monkeypatch.setattr(extract_call, "encode_distinct", lambda *args: original(*args)[::-1])
