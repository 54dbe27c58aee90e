"""The facts about a model folder, from its small files and tensor headers; no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from midsight.checkpoints.adapter import find_model
from midsight.checkpoints.checkpoint import Checkpoint, count_parameters, left_out_parts, loaded_parameters
from midsight.checkpoints.fingerprint import fingerprint
from midsight.checkpoints.generation import read_generation
from midsight.checkpoints.hub import how_to_download_again
from midsight.checkpoints.load_options import closest_to_float32
from midsight.checkpoints.loading import find_chat_template, load_processor
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.checkpoints.quiet import quiet_transformers
from midsight.families.family import Family
from midsight.families.family_file import read_proved_file
from midsight.memory import free_memory
from midsight.prompts.chat_template import render
from midsight.prompts.prompt import adds_special_tokens
from midsight.taps.tap import choose_layers

EXAMPLE_QUESTION = "Is the forest lit by a full moon?"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder is."""

    source: str
    """Folder or hub id, as given."""
    folder: str
    """The folder whose files were read; of an adapter, that of its base model."""
    base: str | None
    """Folder or hub id of an adapter's base model; None for a whole model."""
    adapter_folder: str | None
    """The adapter's folder; None for a whole model."""
    format: str
    """How the folder stores its model: `transformers` or `published phi4mm`."""
    family: str
    """The family's name, as in `Phi-4-multimodal`."""
    architecture: str
    """transformers' class."""
    revision: str | None
    """Commit on the hub; None for a plain folder."""
    fingerprint: str
    """SHA-256 of the folder's files, hex."""
    parameters: Mapping[str, int]
    """Number of stored parameters by part of the model."""
    left_out: tuple[str, ...]
    """Parts of the model that are not loaded."""
    lora: str
    """Where the LoRA that image input needs is, in words."""
    layers: int
    """Number of decoder layers."""
    default_layers: tuple[int, ...]
    """The layers that `layers="default"` takes."""
    hidden_size: int
    """Width of the decoder's hidden states."""
    vision_width: int
    """Width of the vision encoder's feature layer."""
    image_token: str
    """The token that stands for image content."""
    image_token_id: int
    """Its id."""
    stop_ids: tuple[int, ...]
    """Token ids that end an answer."""
    longrope_threshold_tokens: int | None
    """Longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
    chat_template: str
    """Where the chat template is from: `folder` or `family`; `none` if neither has one for an image and a text."""
    notes: tuple[str, ...]
    """What a user should know about the folder, one sentence each."""
    prompt_notes: tuple[str, ...]
    """How the prompt differs from the published model's, one sentence each."""
    example_prompt: str
    """The prompt for an example question; empty without a chat template."""
    example_token_ids: tuple[int, ...]
    """The token ids of the example prompt, in which the image is one token."""
    memory_bytes: Mapping[str, int]
    """Size of the loaded weights by dtype, the LoRA applied as `lora="auto"` does."""
    free_bytes: Mapping[str, int]
    """Free memory on this machine by device."""


def read_facts(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    base_revision: str | None = None,
    family: str | Path | None = None,
) -> ModelFacts:
    """Opens a model as `midsight.load` would, without its weights, and accounts for every tensor.

    Args:
        source: Folder or hub id of a model or an adapter.
        revision: Branch, tag or commit of a hub id.
        base: Folder or hub id of an adapter's base model; by default the one that the adapter names.
        base_revision: Branch, tag or commit of the base model's hub id; by default the one that the adapter names.
        family: A file with the model's family, as in `midsight.load`.

    Returns:
        The facts.

    Raises:
        MidsightError: The model cannot be loaded.
    """
    family_file = None if family is None else read_proved_file(family)
    found = find_model(source, revision=revision, base=base, base_revision=base_revision, family_file=family_file)
    folder = found.folder.path
    with quiet_transformers(), how_to_download_again(folder):
        checkpoint = open_checkpoint(folder, found.adapter, family_file)
        declared, config = checkpoint.family, checkpoint.config
        processor = load_processor(checkpoint, folder)
        template, notes = find_chat_template(processor, declared, str(source))
        generation = read_generation(folder, processor.tokenizer, config)
        checkpoint.account()
        rendered = render(processor, declared.prompt, template, EXAMPLE_QUESTION) if template else ""
        prompt = complete(processor.tokenizer, declared, rendered)
        token_ids = tokenise(processor.tokenizer, declared, rendered)
    text = config.get_text_config()
    parameters = count_parameters(checkpoint)
    if found.adapter:
        parameters["adapter"] = sum(header.parameters for header in found.adapter.headers.values())
    origin = found.origin(checkpoint.headers)
    return ModelFacts(
        source=str(source),
        folder=str(folder),
        base=found.name if found.adapter else None,
        adapter_folder=str(found.adapter.path) if found.adapter else None,
        format=checkpoint.format,
        family=declared.name,
        architecture=declared.architecture,
        revision=found.revision,
        fingerprint=origin.fingerprint if origin else fingerprint(folder, checkpoint.headers),
        parameters=parameters,
        left_out=tuple(part for part in parameters if part in left_out_parts(declared)),
        lora=describe_lora(checkpoint),
        layers=text.num_hidden_layers,
        default_layers=choose_layers("default", text.num_hidden_layers),
        hidden_size=text.hidden_size,
        vision_width=declared.vision.width(config),
        image_token=declared.prompt.image_token,
        image_token_id=processor.tokenizer.convert_tokens_to_ids(declared.prompt.image_token),
        stop_ids=generation.settings.stop_ids,
        longrope_threshold_tokens=declared.decoder.longrope_threshold(config),
        chat_template=template.source if template else "none",
        notes=(*checkpoint.notes, *generation.notes),
        prompt_notes=notes,
        example_prompt=prompt,
        example_token_ids=token_ids,
        memory_bytes={str(dtype).removeprefix("torch."): memory_in(dtype, checkpoint) for dtype in DTYPES},
        free_bytes=free_bytes(),
    )


def complete(tokenizer: Any, family: Family, rendered: str) -> str:
    """The prompt as the family's processor completes what was rendered; empty if nothing was."""
    return family.prompt.complete_text(rendered, tokenizer) if rendered else ""


def tokenise(tokenizer: Any, family: Family, rendered: str) -> tuple[int, ...]:
    """The token ids of a rendered prompt; an empty prompt has none."""
    if not rendered:
        return ()
    special_tokens = adds_special_tokens(tokenizer, rendered)
    return tuple(tokenizer(complete(tokenizer, family, rendered), add_special_tokens=special_tokens)["input_ids"])


def memory_in(dtype: torch.dtype, checkpoint: Checkpoint) -> int:
    """Size of the loaded weights, in bytes."""
    lora = closest_to_float32(dtype) if checkpoint.has_lora else None
    return dtype.itemsize * loaded_parameters(checkpoint, lora)


def describe_lora(checkpoint: Checkpoint) -> str:
    """Where the LoRA that image input needs is, in words."""
    lora_folder = checkpoint.family.stored.lora_folder
    if lora_folder is None:
        return "the family has none"
    if not checkpoint.has_own_lora:
        return f"no {lora_folder}/: merged into the weights, or missing; the files do not say which"
    return "beside the weights"


def free_bytes() -> dict[str, int]:
    """Free memory of the machine and of every CUDA device, in bytes."""
    free = {"cpu": free_memory()}
    for index in range(torch.cuda.device_count()):
        free[f"cuda:{index}"] = torch.cuda.mem_get_info(index)[0]
    return free
