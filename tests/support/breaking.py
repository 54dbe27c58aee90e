"""Ways to break midsight in memory: functions that are patched, declarations and models that are changed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from midsight import Model
from midsight.check import subject
from midsight.extraction import attention, calls, decode, extract_call, prefill, prepare
from midsight.families import inputs
from midsight.prompts import prompt
from midsight.samples import images
from midsight.taps import positions
from support import damages


def patch(
    owner: Any, name: str, change: Callable[[Any], Callable[..., Any]]
) -> Callable[[pytest.MonkeyPatch, Model], None]:
    """Replaces a function by what `change` makes of it."""

    def damage(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
        monkeypatch.setattr(owner, name, change(getattr(owner, name)))

    return damage


def mix_regimes(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    """Plans prompts on both sides of the longrope threshold into one call, whose rows go through together."""
    kind_of = calls.kind_of
    monkeypatch.setattr(calls, "kind_of", lambda row: (False, kind_of(row)[1]))
    monkeypatch.setattr(prefill, "SLICE_TOKENS", 10**6)  # one by one, each would have its own factors


def after(owner: Any, name: str, edit: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch, Model], None]:
    """Changes what a function returns."""
    return patch(owner, name, lambda original: lambda *args, **options: edit(original(*args, **options)))


def declare(**declared: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch, Model], Model]:
    """Replaces declarations of the family; each is a function of the original."""

    def damage(_monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
        family = model.loaded.family
        originals = {
            name: next(getattr(getattr(family, g), name) for g in damages.GROUPS if hasattr(getattr(family, g), name))
            for name in declared
        }
        return damages.declaring(model, **{name: make(originals[name]) for name, make in declared.items()})

    return damage


def replaced(**fields: Any) -> Callable[[pytest.MonkeyPatch, Model], Model]:
    """A loaded model with other fields."""
    return lambda _monkeypatch, model: Model(dataclasses.replace(model.loaded, **fields))


def change_property(
    owner: type, name: str, change: Callable[[Any], Any]
) -> Callable[[pytest.MonkeyPatch, Model], None]:
    """Changes the value of a property."""
    original = vars(owner)[name].fget
    return lambda monkeypatch, _model: monkeypatch.setattr(owner, name, property(lambda self: change(original(self))))


def edit_rows(edit: Callable[[prefill.PaddedRows], prefill.PaddedRows]) -> Callable[[Any], Callable[..., Any]]:
    return lambda original: lambda *args, **options: edit(original(*args, **options))


def later_positions(rows: prefill.PaddedRows) -> prefill.PaddedRows:
    return dataclasses.replace(rows, position_ids=rows.position_ids + 1)


def first_rows_stay(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    original = decode.keep_rows
    monkeypatch.setattr(decode, "keep_rows", lambda cache, rows: original(cache, torch.arange(len(rows))))


def open_padding(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    def everything(_model: Any, before: Any, new: Any, *, is_padded: bool) -> Any:
        prompt_ids = torch.cat([before, new], dim=1)
        one_prompt_a_row = new.shape[1] == 1
        return torch.ones_like(prompt_ids) if one_prompt_a_row else original(_model, before, new, is_padded=is_padded)

    original = prefill.make_mask
    monkeypatch.setattr(prefill, "make_mask", everything)


def read_other_questions(_original: Any) -> Callable[..., Any]:
    def readable(before: Any, new: Any) -> Any:
        prompt_ids = torch.cat([before, new], dim=1)
        reads = (prompt_ids != attention.PADDING)[:, None].expand(-1, new.shape[1], -1)
        return reads & torch.ones(reads.shape[1:], dtype=torch.bool).tril(before.shape[1])

    return readable


def last_by_place(reads: Any, window: int) -> Any:
    new, total = reads.shape[1:]
    return reads & (torch.arange(total) > torch.arange(total - new, total)[:, None] - window)


def on_first_prefix(original: Any) -> Callable[..., Any]:
    def halves(call: Any) -> Any:
        return [type(call)((dataclasses.replace(half.rows[0], items=tuple(half.items)),)) for half in original(call)]

    return halves


def score_as_last(original: Any) -> Callable[..., Any]:
    def choose_tokens(rows: Any, settings: Any, **options: Any) -> Any:
        return original(decode.OpenRows([rows.answers[-1]] * len(rows.answers), rows.state), settings, **options)

    return choose_tokens


def each_answer(edit: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch, Model], None]:
    """Changes the records that have answers."""
    return after(extract_call, "make_outcome", lambda record: edit(record) if record.answer is not None else record)


def edit_first_tokens(edit: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch, Model], None]:
    return after(extract_call, "describe_first_token", edit)


def turn_order(items: Any) -> Any:
    return [dataclasses.replace(item, images=item.images[::-1]) if hasattr(item, "images") else item for item in items]


def turn_images(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    original = prepare.prepare
    for module in (subject, extract_call):
        monkeypatch.setattr(module, "prepare", lambda *args: turn_order(original(*args)))


def render_differently(edit: Callable[[str], str]) -> Callable[[pytest.MonkeyPatch, Model], None]:
    return after(prompt, "render_places", edit)


def no_refill(original: Any) -> Callable[..., Any]:
    def decode_until(*args: Any, threshold: int | None, **options: Any) -> Any:
        return original(*args, threshold=None, **options)

    return decode_until


def residual_after_norm(original: Any) -> Callable[..., Any]:
    return lambda hf_model, family, tap: original(hf_model, family, dataclasses.replace(tap, stage="layer"))


def one_tap_later(original: Any) -> Callable[..., Any]:
    def tapped_module(hf_model: Any, family: Any, tap: Any) -> Any:
        last = len(hf_model.get_submodule(family.modules.layers)) - 1
        return original(hf_model, family, dataclasses.replace(tap, layer=min(tap.layer + 1, last)))

    return tapped_module


def change_inputs(edit: Callable[[dict, dict], tuple[dict, dict]]) -> Callable[[pytest.MonkeyPatch, Model], Model]:
    """Changes what the family gives the decoder, in prefill and later."""
    return declare(
        inputs=lambda original: (
            lambda *args: (lambda made: inputs.DecoderInputs(*edit(dict(made.prefill), dict(made.later))))(
                original(*args)
            )
        )
    )


def open_all_tiles(made: dict, later: dict) -> tuple[dict, dict]:
    return {**made, "cross_attention_mask": torch.zeros_like(made["cross_attention_mask"])}, later


def one_feature_layer_less(original: Any) -> Callable[..., Any]:
    def encode(hf_model: Any, images: Any) -> Any:
        config = hf_model.model.embed_tokens_extend.image_embed.img_processor.config
        layer = config.feature_layer
        config.feature_layer = layer - 1
        try:
            return original(hf_model, images)
        finally:
            config.feature_layer = layer

    return encode


def other_pixels(edit: Callable[[Any], Any]) -> Callable[[pytest.MonkeyPatch, Model], Model]:
    return declare(
        image_inputs=lambda original: (
            lambda *args: (lambda made: dataclasses.replace(made, pixel_values=edit(made.pixel_values)))(
                original(*args)
            )
        )
    )


def nearest(original: Any) -> Callable[..., Any]:
    return lambda processor, image, pixels, config: original(
        processor, image.resize((16, 16), Image.Resampling.NEAREST).resize(image.size), pixels, config
    )


def ignore_orientation(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    monkeypatch.setattr(images, "_orientation", lambda image: 1)


def mean_without_last(monkeypatch: pytest.MonkeyPatch, _model: Model) -> None:
    def mean(states: Any, layouts: Any, rows: Any) -> Any:
        return torch.stack(
            [states[row, one.image_indices()[:-1]].float().mean(dim=0) for row, one in zip(rows, layouts, strict=True)]
        )

    monkeypatch.setitem(positions._READERS, "image_mean", mean)


def round_frequencies(_monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    rotary = model.loaded.hf_model.model.language_model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.bfloat16()
    return model


def undo_silence(_monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    """The model as transformers has it, and a family that sees no bug in it."""
    for layer in model.loaded.hf_model.model.language_model.layers:
        layer._forward_pre_hooks.clear()
        layer._forward_pre_hooks_with_kwargs.clear()
        if hasattr(layer, "cross_attn"):
            layer.cross_attn._forward_hooks.clear()
    return damages.declaring(model, fixes=lambda _model: ())


def turn_tower_causal(_monkeypatch: pytest.MonkeyPatch, model: Model) -> Model:
    for layer in model.loaded.hf_model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
        layer.self_attn.is_causal = True
    return damages.declaring(model, fixes=lambda _model: ())
