"""What a family declares and a folder configures, against the model in memory."""

from __future__ import annotations

import torch

from midsight.check.check import Check, count
from midsight.check.subject import Subject
from midsight.checkpoints.loading import LoadedModel
from midsight.families.family import apply_fixes, decoder_layers


def check_declarations(subject: Subject) -> list[Check]:
    """Layers, image token, known bugs, stop ids, and the dtype of rotary frequencies."""
    model = subject.model
    declared = model.family.prompt.image_token_id(model.config)
    return [
        count(
            "decoder layers declared and configured, difference",
            abs(len(decoder_layers(model.hf_model, model.family)) - model.n_layers),
        ),
        count(
            "image token's id in config and tokenizer, difference",
            abs(declared - model.tokenizer.convert_tokens_to_ids(model.family.prompt.image_token)),
        ),
        count("known bugs left to fix", len(apply_fixes(model.hf_model, model.family))),
        count("stop ids that differ from those of the folder's generation config", stop_id_differences(model)),
        count("rotary frequencies that are not kept in float32", rounded_frequencies(model)),
    ]


def stop_id_differences(model: LoadedModel) -> int:
    """Number of ids that only one side has, of the model's stop ids and those that transformers read."""
    published = model.hf_model.generation_config.eos_token_id
    theirs = {published} if isinstance(published, int) else {*(published or ())}
    return len(theirs ^ {*model.stop_ids})


def rounded_frequencies(model: LoadedModel) -> int:
    """Number of buffers of rotary frequencies whose dtype is not float32."""
    buffers = model.hf_model.named_buffers()
    return sum(tensor.dtype != torch.float32 for name, tensor in buffers if name.endswith("inv_freq"))
