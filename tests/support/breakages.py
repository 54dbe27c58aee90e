"""Breakages made on purpose, one for each way in which a number has gone wrong or could; the proof has to see them."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from midsight import Model
from midsight.checkpoints.generation import AnswerSettings
from midsight.extraction import attention, calls, decode, extract_call, prepare, sharing
from midsight.families import inputs
from midsight.prompts import prompt
from midsight.taps import capture, positions
from support import damages
from support.breaking import (
    after,
    change_inputs,
    change_property,
    declare,
    each_answer,
    edit_first_tokens,
    edit_rows,
    first_rows_stay,
    ignore_orientation,
    last_by_place,
    later_positions,
    mean_without_last,
    mix_regimes,
    nearest,
    no_refill,
    on_first_prefix,
    one_feature_layer_less,
    one_tap_later,
    open_all_tiles,
    open_padding,
    other_pixels,
    patch,
    read_other_questions,
    render_differently,
    replaced,
    residual_after_norm,
    round_frequencies,
    score_as_last,
    turn_images,
    turn_tower_causal,
    undo_silence,
)

TOGETHER, SINGLE_ROWS = "questions on two images of one size in one call", "the same questions, no prefix shared"
LOW_THRESHOLD = "prompts on both sides of a longrope threshold set low"


@dataclass(frozen=True)
class Breakage:
    """What is broken, and how the proof says so."""

    name: str
    damage: Callable[[pytest.MonkeyPatch, Model], Model | None]
    """Breaks midsight, or returns a broken model."""
    section: str
    """The section of the proof that notices it."""
    row: str
    """How the name of the check starts that fails."""
    on: str = "qwen2_vl"
    """The small checkpoint on which it shows."""
    alone: bool = False
    """Whether it changes the model's modules, and so needs a copy of them."""


EXTRACTION = [
    Breakage(
        "the first prefix used for all rows",
        patch(
            sharing,
            "prefill",
            lambda original: (
                lambda m, rows, images, taps, **options: original(m, rows, [images[0]] * len(images), taps, **options)
            ),
        ),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "a prefix that is known without its image",
        change_property(prepare.PreparedSample, "prefix_key", lambda key: key[0]),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "positions of a question on a prefix off by one",
        patch(sharing, "pad_suffixes", edit_rows(later_positions)),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "questions on another image's prefix",
        patch(
            sharing,
            "pad_suffixes",
            lambda original: lambda m, items, rows: original(m, items, [max(rows) - row for row in rows]),
        ),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage("cache rows mixed up after an answer ends", first_rows_stay, "calls of several samples", SINGLE_ROWS),
    Breakage("padding read while decoding", open_padding, "calls of several samples", SINGLE_ROWS),
    Breakage(
        "other questions on the prefix read",
        patch(attention, "readable", read_other_questions),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "padding counted in decode positions",
        lambda monkeypatch, _model: damages.count_padding_in_decode(monkeypatch),
        "calls of several samples",
        SINGLE_ROWS,
    ),
    Breakage(
        "decode positions off by one",
        after(
            extract_call,
            "continue_from",
            lambda start: dataclasses.replace(start, position_offsets=[n + 1 for n in start.position_offsets]),
        ),
        "answers",
        "log-probabilities of answers",
    ),
    Breakage(
        "a sliding window that is not kept",
        patch(attention, "last_of", lambda _: lambda reads, _window: reads),
        "calls of several samples",
        TOGETHER,
        on="sliding",
    ),
    Breakage(
        "a sliding window that counts padding and other questions",
        patch(attention, "last_of", lambda _: last_by_place),
        "calls of several samples",
        TOGETHER,
        on="sliding",
    ),
    Breakage(
        "entropy in bits",
        edit_first_tokens(lambda made: [dataclasses.replace(t, entropy=t.entropy / math.log(2)) for t in made]),
        "answers",
        "entropy and ten likeliest",
    ),
    Breakage(
        "likeliest tokens from the end",
        edit_first_tokens(lambda made: [dataclasses.replace(t, top_ids=t.top_ids[::-1]) for t in made]),
        "answers",
        "entropy and ten likeliest",
    ),
    Breakage(
        "first tokens of other samples",
        edit_first_tokens(lambda made: made[::-1]),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "log-probabilities at another temperature",
        patch(decode.Distribution, "of", lambda original: lambda logits: original(logits / 2)),
        "answers",
        "log-probabilities of answers",
    ),
    Breakage(
        "log-probabilities rounded to 16 bits",
        after(decode.Distribution, "logprobs", lambda made: made.bfloat16().double()),
        "answers",
        "log-probabilities of answers",
    ),
    Breakage(
        "an answer that is not the likeliest",
        patch(decode, "choose_tokens", lambda _: lambda rows, *_, **__: rows.state.logits.topk(2).indices[:, 1:]),
        "answers",
        "answers that differ from transformers' generate",
    ),
    Breakage(
        "finish_reason always length",
        each_answer(lambda record: dataclasses.replace(record, finish_reason="length")),
        "calls of several samples",
        f"{TOGETHER}: answers",
    ),
    Breakage(
        "answer text without its last character",
        each_answer(lambda record: dataclasses.replace(record, answer=record.answer[:-1])),
        "answers",
        "texts and finish reasons",
    ),
    Breakage(
        "an answer that goes on after its stop token",
        patch(
            decode,
            "take_tokens",
            lambda f: lambda rows, settings, **options: f(rows, dataclasses.replace(settings, stop_ids=()), **options),
        ),
        "calls of several samples",
        f"{TOGETHER}: answers",
    ),
    Breakage(
        "one new token less than asked for",
        patch(
            decode,
            "take_tokens",
            lambda f: lambda rows, settings, *, max_new_tokens: f(rows, settings, max_new_tokens=max_new_tokens - 1),
        ),
        "calls of several samples",
        "the same questions, no stop id: answers",
    ),
    Breakage(
        "vectors of other samples",
        after(extract_call, "collect_vectors", lambda made: made[::-1]),
        "batches",
        "one batch",
    ),
    Breakage(
        "the attention mask dropped",
        patch(
            extract_call,
            "pad_rows",
            edit_rows(lambda rows: dataclasses.replace(rows, prompt_ids=rows.prompt_ids.clamp(min=0))),
        ),
        "batches",
        "one batch, padded left",
    ),
    Breakage(
        "images of other samples",
        lambda monkeypatch, _model: damages.exchange_images(monkeypatch),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "half a call on its first prefix",
        patch(calls.Call, "halves", on_first_prefix),
        "calls of several samples",
        TOGETHER,
    ),
    Breakage(
        "a generation config that is left out",
        patch(
            decode,
            "choose_tokens",
            lambda f: lambda rows, settings, **options: f(rows, dataclasses.replace(settings, values={}), **options),
        ),
        "answers",
        "answers that differ from transformers' generate",
        on="penalised",
    ),
    Breakage(
        "penalties for the tokens of another answer",
        patch(decode, "choose_tokens", score_as_last),
        "calls of several samples",
        "the same questions, as the generation config asks: answers",
        on="penalised",
    ),
    Breakage(
        "every layer off by one", patch(capture, "tapped_module", one_tap_later), "states", "query_token at every layer"
    ),
    Breakage(
        "the residual after the norm",
        patch(capture, "tapped_module", residual_after_norm),
        "states",
        "query_token at every layer",
    ),
    Breakage(
        "the query token off by one",
        patch(
            positions, "_at", lambda f: lambda states, rows, indices: f(states, rows, [max(0, i - 1) for i in indices])
        ),
        "states",
        "query_token at every layer",
    ),
    Breakage(
        "the mean of the image without its last token",
        mean_without_last,
        "states",
        "image_mean at every layer",
    ),
    Breakage(
        "an index in the record off by one",
        after(
            extract_call,
            "make_outcome",
            lambda made: dataclasses.replace(made, vision_token_index=made.vision_token_index + 1),
        ),
        "records",
        "records whose numbers of tokens",
    ),
    Breakage("the order of two images turned", turn_images, "pixels", "pixels, resized as in a run"),
    Breakage(
        "an image_id that is the same for all",
        patch(prepare, "image_id", lambda _: lambda image: "0" * 64),
        "images",
        "records whose image_id",
    ),
    Breakage("EXIF orientation ignored", ignore_orientation, "images", "an image with an EXIF orientation"),
    Breakage(
        "longrope's threshold ignored",
        declare(longrope_threshold=lambda _: lambda config: None),
        "longrope",
        "longrope threshold found",
        on="phi4_multimodal",
    ),
    Breakage(
        "longrope's threshold off by one",
        patch(
            calls,
            "is_long",
            lambda f: (
                lambda item, request: (
                    request.longrope_threshold is not None and len(item.prompt.token_ids) >= request.longrope_threshold
                )
            ),
        ),
        "longrope",
        LOW_THRESHOLD,
        on="phi4_multimodal",
    ),
    Breakage(
        "an answer that crosses the threshold on the old cache",
        patch(extract_call, "decode_until", no_refill),
        "longrope",
        LOW_THRESHOLD,
        on="phi4_multimodal",
    ),
    Breakage(
        "both regimes in one call",
        mix_regimes,
        "longrope",
        LOW_THRESHOLD,
        on="phi4_multimodal",
    ),
]

PROMPTS = [
    Breakage(
        "the first token added twice",
        patch(prompt, "adds_special_tokens", lambda _: lambda tokenizer, text: True),
        "prompts",
        "prompts whose token ids",
        on="mllama that adds its first token",
    ),
    Breakage(
        "no start of the assistant's turn",
        render_differently(lambda text: text.removesuffix("<|im_start|>assistant\n")),
        "prompts",
        "prompts whose token ids",
    ),
    Breakage(
        "the template's own system turn lost",
        render_differently(
            lambda text: text.replace("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n", "")
        ),
        "prompts",
        "prompts whose token ids",
    ),
    Breakage(
        "another family's template",
        render_differently(lambda text: text.replace("<|im_start|>", "").replace("<|im_end|>", "")),
        "prompts",
        "prompts whose token ids",
    ),
    Breakage(
        "an image token too few",
        patch(
            prompt,
            "expand_image_tokens",
            lambda f: (
                lambda *args, image_tokens, **options: f(*args, image_tokens=[n - 1 for n in image_tokens], **options)
            ),
        ),
        "prompts",
        "prompts whose token ids",
    ),
]

CHECKPOINTS = [
    Breakage(
        "stop ids of the tokenizer",
        replaced(answer_settings=AnswerSettings(stop_ids=(151645,))),
        "declarations",
        "stop ids",
    ),
    Breakage("rotary frequencies in 16 bits", round_frequencies, "declarations", "rotary frequencies", alone=True),
    Breakage(
        "another image token",
        declare(image_token_id=lambda _: lambda config: 151656),
        "declarations",
        "image token's id",
    ),
]

FAMILIES = [
    Breakage(
        "crops in the wrong order",
        declare(image_embeddings=lambda f: lambda *args: f(*args).flip(0)),
        "states",
        "vision_token at every layer",
        on="phi4_multimodal",
    ),
    Breakage(
        "another feature layer",
        declare(encode=one_feature_layer_less),
        "vision features",
        "vision features",
        on="phi4_multimodal",
    ),
    Breakage(
        "padding patches counted",
        declare(useful_patches=lambda _: lambda image: torch.ones_like(image.patch_mask.flatten(1))),
        "vision features",
        "vision features",
        on="phi4_multimodal",
    ),
    Breakage(
        "patches left out of the mean",
        declare(useful_patches=lambda f: lambda image: f(image) & (torch.arange(len(image.patch_mask)) == 0)[:, None]),
        "useful patches",
        "patches of filled crops that reach",
        on="phi4_multimodal",
    ),
    Breakage(
        "the vision tower causal",
        turn_tower_causal,
        "attention kernel",
        "sdpa and eager attention",
        on="phi4_multimodal",
        alone=True,
    ),
    Breakage(
        "colours exchanged",
        other_pixels(lambda pixels: pixels.flip(1)),
        "pixels",
        "pixels, resized by transformers",
        on="phi4_multimodal",
    ),
    Breakage(
        "pixels without normalisation",
        other_pixels(lambda pixels: pixels * 0.5 + 0.5),
        "pixels",
        "pixels, resized by transformers",
    ),
    Breakage("images resized twice", declare(image_inputs=nearest), "pixels", "pixels, resized by transformers"),
    Breakage(
        "positions counted like text",
        declare(positions=lambda _: inputs.sequential_positions),
        "states",
        "query_token at every layer",
    ),
    Breakage(
        "rows and columns exchanged",
        declare(positions=lambda f: lambda *args: f(*args)[[0, 2, 1]]),
        "states",
        "query_token at every layer",
    ),
    Breakage(
        "a prefix declared to depend on the question",
        declare(shares_image_prefix=lambda _: False),
        "shared prefix",
        "image states under another question",
    ),
    Breakage(
        "tokens before the image read it",
        undo_silence,
        "states before the image",
        "states before the image",
        on="mllama",
        alone=True,
    ),
    Breakage(
        "padding tiles read by the question",
        change_inputs(open_all_tiles),
        "states",
        "query_token at every layer",
        on="mllama",
    ),
    Breakage(
        "padding tiles counted",
        declare(useful_patches=lambda f: lambda image: torch.ones_like(f(image))),
        "useful patches",
        "patches in the mean that never reach the decoder",
        on="mllama",
    ),
    Breakage(
        "no cross-attention mask while decoding",
        change_inputs(lambda made, _later: (made, {})),
        "calls of several samples",
        SINGLE_ROWS,
        on="mllama",
    ),
]

BREAKAGES = [*EXTRACTION, *PROMPTS, *CHECKPOINTS, *FAMILIES]
