"""check_adapter: an adapter's declarations, proved on real tensors of a loaded model.

The reference is transformers' own full forward with output_hidden_states, one sample, no padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midsight.extraction.batch import extract_samples
from midsight.extraction.model import Model
from midsight.extraction.prepare import PreparedSample, prepare
from midsight.extraction.request import PaddingSide, Plan, Request, resolve
from midsight.models.adapter import decoder_layers, submodule
from midsight.models.loading import LoadedModel
from midsight.records import VISION_ONLY, Record
from midsight.samples.sample import Failure, Sample
from midsight.taps.tap import POSITIONS, Tap


@dataclass(frozen=True)
class Check:
    """One declaration and what was measured of it."""

    name: str
    """What was compared."""
    figure: float
    """Largest relative error ||a - b|| / ||b|| over the samples; or a count of differences."""
    limit: float
    """The largest figure that passes; for a check that `must_differ`, the smallest."""
    must_differ: bool = False
    """Whether the two sides have to differ, as with the LoRA on and off."""

    @property
    def passed(self) -> bool:
        """Whether the figure keeps to the limit; one that is not finite never does."""
        if not np.isfinite(self.figure):
            return False
        return self.figure >= self.limit if self.must_differ else self.figure <= self.limit


@dataclass(frozen=True)
class FullForward:
    """transformers' own forward over one prompt."""

    hidden_states: Tensor
    """float32 [layers + 1, tokens, hidden size]."""
    last_residual: Tensor
    """float32 [tokens, hidden size]: what enters the final norm."""
    tower_feature: Tensor
    """float32 [crops with padding, patches, vision width]."""


def check_adapter(
    model: Model, samples: Sequence[Sample], *, limit: float = 1e-5, max_new_tokens: int = 12
) -> tuple[Check, ...]:
    """Measures every declaration of the model's adapter on `samples`; two or more, of different images.

    `limit` is the largest relative error that passes: 1e-5 for float32 on a CPU. Run it on a freshly
    loaded model: transformers gives hidden states only to a model whose first full forward asked for them.
    Raises ValueError for a sample that cannot be prepared.
    """
    loaded = model.loaded
    plan = resolve(Request(layers="all", residual=True, positions=POSITIONS, max_new_tokens=max_new_tokens), loaded)
    prepared = [_usable(item) for item in prepare(loaded, plan, samples)]
    forwards = [full_forward(loaded, item) for item in prepared]
    alone = [_record(extract_samples(loaded, plan, [sample])[0]) for sample in samples]
    checks = [
        Check("decoder layers declared and configured, difference", _layer_difference(loaded), 0),
        Check("defects left to mend", len(loaded.adapter.mends(loaded.hf_model)), 0),
        *check_taps(plan, alone, prepared, forwards, limit),
        Check("vision features and transformers' tower", _vision_error(loaded, alone, prepared, forwards), limit),
        *check_useful_patches(loaded, prepared),
        *check_batches(loaded, plan, samples, alone, limit),
        check_prefix(loaded, plan, samples, alone, limit),
        Check("answers that differ from generate", _different_answers(loaded, plan, alone, prepared), 0),
    ]
    if loaded.lora == "unmerged":
        checks.append(check_lora(loaded, plan, samples, alone))
    return tuple(checks)


def check_taps(
    plan: Plan,
    records: Sequence[Record],
    prepared: Sequence[PreparedSample],
    forwards: Sequence[FullForward],
    limit: float,
) -> list[Check]:
    """Each position's taps, at every layer, against the hidden states of the full forward."""

    def expected(tap: Tap, item: PreparedSample, forward: FullForward) -> np.ndarray:
        states = forward.last_residual if tap.stage == "residual" else forward.hidden_states[tap.layer + 1]
        image = torch.tensor(item.prompt.token_ids) == item.prompt.token_ids[item.prompt.layout.vision_token]
        at: dict[str, Callable[[], Tensor]] = {
            "vision_token": lambda: states[image.nonzero()[-1, 0]],
            "query_token": lambda: states[-1],
            "image_mean": lambda: states[image].mean(dim=0),
        }
        return at[tap.position]().numpy()

    def worst(position: str) -> float:
        return max(
            relative_error(record.vectors[str(tap)], expected(tap, item, forward))
            for tap in plan.taps
            if tap.position == position
            for record, item, forward in zip(records, prepared, forwards, strict=True)
        )

    return [Check(f"{position} at every layer and the full forward", worst(position), limit) for position in POSITIONS]


def check_useful_patches(model: LoadedModel, prepared: Sequence[PreparedSample]) -> list[Check]:
    """Which patches reach the decoder, found by gradients, against those declared useful.

    Pooling may join a last odd row or column of the image with one of padding, so a few more may
    reach the decoder than are useful.
    """
    unseen = seen = extra = 0
    for image in (image for item in prepared for image in item.images):
        useful = model.adapter.useful_patches(image)
        width = model.adapter.vision_width(model.config)
        generator = torch.Generator().manual_seed(0)
        random = torch.randn((*useful.shape, width), generator=generator)
        features = random.to(model.device, model.dtype).requires_grad_()
        embeddings = model.adapter.image_embeddings(model.hf_model, features, image)
        (gradient,) = torch.autograd.grad(embeddings.float().pow(2).sum(), features)
        reaches = gradient.abs().sum(dim=-1).cpu() > 0
        unseen += int((useful & ~reaches).sum())
        seen += int(reaches.sum())
        extra += int((reaches & ~useful).sum())
    return [
        Check("useful patches that the decoder never sees", unseen, 0),
        Check("share of the patches it sees that are not useful", extra / seen, 1 / 16),
    ]


def check_batches(
    model: LoadedModel, plan: Plan, samples: Sequence[Sample], alone: Sequence[Record], limit: float
) -> list[Check]:
    """All samples in one batch, on either padding side and in reverse order, against each alone."""

    def batch_error(order: Sequence[Sample], side: PaddingSide) -> float:
        by_id = {record.sample_id: record for record in alone}
        outcomes = [_record(outcome) for outcome in extract_samples(model, plan, order, padding_side=side)]
        return max(largest_error(outcome, by_id[outcome.sample_id]) for outcome in outcomes)

    return [
        Check("one batch, padded left, and each sample alone", batch_error(samples, "left"), limit),
        Check("one batch, padded right, and each sample alone", batch_error(samples, "right"), limit),
        Check("one batch in reverse order and each sample alone", batch_error(samples[::-1], "left"), limit),
    ]


def check_prefix(
    model: LoadedModel, plan: Plan, samples: Sequence[Sample], alone: Sequence[Record], limit: float
) -> Check:
    """States at the last image token under another question: the same if the prefix is declared shared."""
    others = [
        Sample(sample.sample_id, sample.input_index, sample.images, f"{sample.question} And what else is there?")
        for sample in samples
    ]
    taps = [str(tap) for tap in plan.taps if tap.position == "vision_token"]
    errors = [
        relative_error(_record(extract_samples(model, plan, [other])[0]).vectors[name], record.vectors[name])
        for other, record in zip(others, alone, strict=True)
        for name in taps
    ]
    if model.adapter.shares_image_prefix:
        return Check("image states under another question", max(errors), limit)
    return Check("image states under another question", max(errors), limit, must_differ=True)


def check_lora(model: LoadedModel, plan: Plan, samples: Sequence[Sample], alone: Sequence[Record]) -> Check:
    """The query token's states with the LoRA on and off: they have to differ."""
    model.hf_model.disable_adapters()
    try:
        without = [_record(outcome) for outcome in extract_samples(model, plan, samples)]
    finally:
        model.hf_model.enable_adapters()
    return Check("LoRA off and on", min(map(largest_error, without, alone)), 1e-3, must_differ=True)


@torch.inference_mode()
def full_forward(model: LoadedModel, item: PreparedSample) -> FullForward:
    """Transformers' own forward over one prompt, hidden states kept at every layer and position."""
    seen: dict[str, Tensor] = {}
    final_norm = submodule(model.hf_model, model.adapter.final_norm)
    tower = submodule(model.hf_model, model.adapter.vision_tower)

    def keep_residual(_module: object, args: tuple[Tensor, ...]) -> None:
        seen["residual"] = args[0][0].float().cpu()

    def keep_feature(_module: object, _args: object, output: Any) -> None:
        seen["feature"] = model.adapter.tower_feature(output).float().cpu()

    hooks = [final_norm.register_forward_pre_hook(keep_residual), tower.register_forward_hook(keep_feature)]
    try:
        output = model.hf_model(**_transformers_inputs(model, item), output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    states = torch.cat(output.hidden_states).float().cpu()
    return FullForward(states, seen["residual"], seen["feature"])


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """||value - reference|| / ||reference||, computed in float64."""
    difference = np.linalg.norm(value.astype(np.float64) - reference.astype(np.float64))
    return float(difference / np.linalg.norm(reference.astype(np.float64)))


def largest_error(record: Record, reference: Record) -> float:
    """The largest relative error over all vectors of two records of one sample."""
    return max(relative_error(record.vectors[name], reference.vectors[name]) for name in reference.vectors)


def _usable(item: PreparedSample | Failure) -> PreparedSample:
    if isinstance(item, Failure):
        raise ValueError(f"Sample {item.sample_id} cannot be prepared: {item.reason}")
    return item


def _record(outcome: Record | Failure) -> Record:
    if isinstance(outcome, Failure):
        raise ValueError(f"Sample {outcome.sample_id} cannot be extracted: {outcome.reason}")
    return outcome


def _transformers_inputs(model: LoadedModel, item: PreparedSample) -> dict[str, Tensor]:
    inputs = {"input_ids": torch.tensor([item.prompt.token_ids]), **model.adapter.forward_inputs(item.images)}
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def _layer_difference(model: LoadedModel) -> int:
    return abs(len(decoder_layers(model.hf_model, model.adapter)) - model.n_layers)


@torch.inference_mode()
def _vision_error(
    model: LoadedModel, records: Sequence[Record], prepared: Sequence[PreparedSample], forwards: Sequence[FullForward]
) -> float:
    errors = []
    for record, item, forward in zip(records, prepared, forwards, strict=True):
        by_image = forward.tower_feature.unflatten(0, (len(item.images), -1))
        useful = [
            crops[: len(image.pixel_values)][model.adapter.useful_patches(image)]
            for crops, image in zip(by_image, item.images, strict=True)
        ]
        errors.append(relative_error(record.vectors[VISION_ONLY], torch.cat(useful).double().mean(dim=0).numpy()))
    return max(errors)


@torch.inference_mode()
def _different_answers(
    model: LoadedModel, plan: Plan, records: Sequence[Record], prepared: Sequence[PreparedSample]
) -> int:
    border = model.adapter.longrope_border(model.config)
    different = 0
    for record, item in zip(records, prepared, strict=True):
        prompt_tokens = len(item.prompt.token_ids)
        crosses = border is not None and prompt_tokens <= border < prompt_tokens + plan.max_new_tokens
        generated = model.hf_model.generate(
            **_transformers_inputs(model, item),
            attention_mask=torch.ones((1, prompt_tokens), dtype=torch.int64, device=model.device),
            max_new_tokens=plan.max_new_tokens,
            do_sample=False,
            use_cache=not crosses,
            eos_token_id=list(model.stop_ids),
            pad_token_id=model.pad_id,
        )
        different += tuple(generated[0, prompt_tokens:].tolist()) != record.answer_token_ids
    return different
