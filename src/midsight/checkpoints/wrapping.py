"""Models that the user loaded: what they are, and which adapters are on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from midsight.checkpoints.fingerprint import weights_fingerprint
from midsight.checkpoints.generation import as_ids, read_answer_settings, validate_stop_ids
from midsight.checkpoints.loading import LoadedModel, find_chat_template, missing_lora_note
from midsight.errors import MidsightError
from midsight.families.catalogue import FAMILIES, find_family, find_known
from midsight.families.family import Family, apply_fixes
from midsight.families.inputs import attention_chunk, sliding_window
from midsight.families.placement import device_of


def wrap_model(hf_model: Any, processor: Any) -> LoadedModel:
    """Takes a model that is already in memory; its weights stay as they are.

    The model may be fine-tuned, quantised, or inside a PEFT model, whose active adapters stay on.

    Args:
        hf_model: A transformers model of a known family, or a PEFT model around one. Its bugs are fixed in place.
        processor: Its processor, as AutoProcessor makes it.

    Returns:
        The model.

    Raises:
        MidsightError: The family is unknown, or the processor belongs to another family.
    """
    plain = without_peft(hf_model)
    kind = type(plain).__name__
    # a subclass that a user wrote counts as the class that it is derived from
    known = [parent.__name__ for parent in type(plain).__mro__ if parent.__name__ in FAMILIES]
    source = f"The model of class {kind}"
    architecture = find_known(known or [kind], source)
    config: Any = plain.config
    family = find_family([architecture], config.to_dict(), source)
    validate_wrapped_processor(processor, family)
    family.vision.validate_processor(processor, config)
    template, notes = find_chat_template(processor, family, type(processor).__name__)
    plain.eval()
    # token ids go to its device, and quantisation usually does not change its dtype
    embedding: Any = plain.get_submodule(family.modules.token_embedding)
    adapters = active_adapters(plain)
    stop_ids = as_ids(plain.generation_config.eos_token_id, "The model's generation config")
    validate_stop_ids(stop_ids, processor.tokenizer, vocab_size(config), "The model's generation config")
    settings, answer_notes = read_answer_settings(
        plain.generation_config, stop_ids, vocab_size(config), "The model's generation config"
    )
    return LoadedModel(
        hf_model=plain,
        processor=processor,
        family=family,
        chat_template=template,
        name=config.name_or_path or kind,
        revision=None,
        format="in memory",
        fingerprint=weights_fingerprint(plain),
        dtype=embedding.weight.dtype,
        device=device_of(embedding),
        sliding_window=sliding_window(config),
        attention_chunk=attention_chunk(config),
        answer_settings=settings,
        attention=config._attn_implementation,
        lora="as given",
        fixes=apply_fixes(plain, family),
        adapters=adapters,
        notes=(*describe_adapters(adapters, family), *answer_notes, *notes),
    )


def active_adapters(hf_model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that are on in PEFT's layers of a model, however they came there, sorted."""
    return tuple(sorted({name for module in hf_model.modules() for name in active_in(module)}))


def active_in(module: Any) -> Iterator[str]:
    """Names of the adapters that one layer has and that are on; PEFT need not be installed."""
    if not hasattr(module, "adapter_layer_names") or getattr(module, "disable_adapters", False):
        return
    parts = [getattr(module, name, {}) for name in module.adapter_layer_names]
    yield from (name for name in module.active_adapters if any(name in part for part in parts))


def describe_adapters(adapters: Sequence[str], family: Family) -> Iterator[str]:
    """Notes about the adapters that are on, one sentence each."""
    if adapters:
        yield f"Adapters of the model that are on: {', '.join(adapters)}."
    others = {part.split()[0] for part in (*family.stored.lora_parts,)[1:]}
    if family.stored.lora_folder is not None and not {*adapters} - others:
        yield missing_lora_note("The model", "adapter for images that is on")


def validate_wrapped_processor(processor: Any, family: Family) -> None:
    """Raises MidsightError if a processor lacks what the family's prompts and images need."""
    source = f"The processor of class {type(processor).__name__}"
    tokenizer, image_processor = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    image_token = family.prompt.image_token
    if tokenizer is None or image_processor is None or image_token not in tokenizer.get_vocab():
        raise MidsightError(
            f"{source} has no tokenizer with {image_token} and image processor; give the one that AutoProcessor makes "
            f"for {family.name}."
        )
    if tokenizer.pad_token_id is None:
        raise MidsightError(f"{source} has a tokenizer without pad_token; set tokenizer.pad_token.")


def without_peft(hf_model: Any) -> Any:
    """The transformers model inside a PEFT model, adapter layers included; any other model is returned unchanged.

    Raises MidsightError for an adapter that works outside the layers, as prompt tuning does.
    """
    configs = getattr(hf_model, "peft_config", None)
    if configs is None or not hasattr(hf_model, "get_base_model"):
        return hf_model
    outside = [config.peft_type for config in configs.values() if config.is_prompt_learning]
    if outside:
        raise MidsightError(
            f"The PEFT model has {outside[0].value}, which adds trained prompts that midsight would leave out; "
            "give a model with LoRA or another adapter inside the layers."
        )
    return hf_model.get_base_model()


def vocab_size(config: Any) -> int:
    """Number of rows of the language-model head."""
    return config.get_text_config().vocab_size
