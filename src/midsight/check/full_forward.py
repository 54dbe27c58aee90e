"""transformers' own full forward over one prompt, and the errors of vectors against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from midsight.checkpoints.loading import LoadedModel
from midsight.extraction.prepare import PreparedSample
from midsight.records import Record


@dataclass(frozen=True)
class FullForward:
    """What transformers' own forward computes for one prompt."""

    hidden_states: Tensor
    """float32 [layers + 1, tokens, hidden size]."""
    last_residual: Tensor
    """float32 [tokens, hidden size]: what enters the final norm, or the state of the last layer if it has several
    streams."""
    tower_features: list[Tensor]
    """The tower's feature layer of each image, float32 [..., vision width]."""


@torch.inference_mode()
def full_forward(model: LoadedModel, item: PreparedSample) -> FullForward:
    """Runs transformers' own forward over one prompt; keeps the hidden states of every layer and position."""
    seen: dict[str, Tensor] = {}
    features: list[Tensor] = []
    final_norm = model.hf_model.get_submodule(model.family.modules.final_norm)
    reference = model.family.reference
    tower = model.hf_model.get_submodule(reference.module or model.family.modules.vision_tower)

    def keep_residual(_module: object, args: tuple[Tensor, ...]) -> None:
        seen["residual"] = args[0][0].float().cpu()

    def keep_normed(_module: object, _args: object, output: Tensor) -> None:
        seen["normed"] = output

    def keep_feature(_module: object, args: object, output: Any) -> None:
        holder = args if reference.of_input else output
        features.extend(one.float().cpu() for one in reference.tower_feature(holder, item.images))

    hooks = [
        final_norm.register_forward_pre_hook(keep_residual),
        final_norm.register_forward_hook(keep_normed),
        tower.register_forward_hook(keep_feature),
    ]
    try:
        output = model.hf_model(**transformers_inputs(model, item), output_hidden_states=True, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    read = model.family.decoder.layer_state
    states = output.hidden_states if read is None else [read(model.config, one) for one in output.hidden_states]
    if read is not None:  # the last one is not normed
        *states, residual = states
        states, seen["residual"] = [*states, seen["normed"]], residual[0].float().cpu()
    return FullForward(torch.cat([*states]).float().cpu(), seen["residual"], features)


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """||value - reference|| / ||reference||, computed in float64."""
    difference = np.linalg.norm(value.astype(np.float64) - reference.astype(np.float64))
    return float(difference / np.linalg.norm(reference.astype(np.float64)))


def worst(errors: Iterable[float]) -> float:
    """The largest error; NaN if one of them is NaN, which Python's max may ignore."""
    return float(np.max(list(errors)))


def largest_error(record: Record, reference: Record) -> float:
    """The largest relative error over all vectors of two records of the same sample."""
    return worst(relative_error(record.vectors[name], reference.vectors[name]) for name in reference.vectors)


def transformers_inputs(model: LoadedModel, item: PreparedSample) -> dict[str, Tensor]:
    """The arguments of transformers' own forward for one prompt and its images, on the model's device."""
    token_ids = torch.tensor([item.prompt.token_ids])
    inputs = {"input_ids": token_ids, **model.family.reference.forward_inputs(model.config, token_ids, item.images)}
    # some classes do not bring pixels into the dtype of their weights
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in inputs.items()
    }
