"""What a model folder is, from its config and headers alone: no weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from midsight.models.catalogue import open_checkpoint
from midsight.models.checkpoint import Checkpoint, count_parameters, left_out_parts, loaded_parameters
from midsight.models.fingerprint import fingerprint
from midsight.models.generation import read_generation
from midsight.models.hub import find_model_folder, how_to_download_again
from midsight.models.loading import closest_to_float32, load_processors, vocab_size
from midsight.models.quiet import quiet_transformers
from midsight.taps.tap import choose_layers

EXAMPLE_QUESTION = "Is the forest lit by a full moon?"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ModelFacts:
    """A model folder at a glance."""

    source: str
    """Folder or hub id as it was given."""
    folder: str
    """Where the files are that were read."""
    layout: str
    """`transformers` or `published phi4mm`."""
    family: str
    """Name for people."""
    architecture: str
    """transformers' class."""
    revision: str | None
    """Commit of the hub, where the folder came from one."""
    fingerprint: str
    """Of the folder's files."""
    parameters: Mapping[str, int]
    """Stored parameters by part of the model."""
    left_out: tuple[str, ...]
    """Parts that are not loaded."""
    lora: str
    """Where the LoRA that image input needs lies."""
    layers: int
    """Decoder layers."""
    default_layers: tuple[int, ...]
    """Those that `--layers default` takes."""
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
    longrope_border_tokens: int | None
    """Longest prompt with the short rotary factors."""
    example_prompt: str
    """The prompt for an example question."""
    example_token_ids: tuple[int, ...]
    """Its token ids, the image still one token."""
    memory_bytes: Mapping[str, int]
    """What the loaded weights take, by dtype, the LoRA applied as `--lora auto` does."""
    free_bytes: Mapping[str, int]
    """Memory that is free on this machine, by device."""


def read_facts(source: str | Path, *, revision: str | None = None) -> ModelFacts:
    """Opens a folder or hub id as `load` would, short of its weights, and accounts for every tensor.

    Raises MidsightError for whatever would keep it from being loaded.
    """
    found = find_model_folder(source, revision=revision)
    with quiet_transformers(), how_to_download_again(found.path):
        checkpoint = open_checkpoint(found.path)
        tokenizer, _ = load_processors(checkpoint, found.path)
        _, stop_ids = read_generation(found.path, tokenizer, vocab_size(checkpoint.config))
        checkpoint.account()
    adapter, config = checkpoint.adapter, checkpoint.config
    text = config.get_text_config()
    prompt = adapter.render_prompt(EXAMPLE_QUESTION, (0, len(EXAMPLE_QUESTION)), 1, None).text
    parameters = count_parameters(checkpoint)

    def bytes_in(dtype: torch.dtype) -> int:
        lora = closest_to_float32(dtype) if checkpoint.has_lora else None
        return dtype.itemsize * loaded_parameters(checkpoint, lora)

    return ModelFacts(
        source=str(source),
        folder=str(found.path),
        layout=checkpoint.layout,
        family=adapter.family,
        architecture=adapter.architecture,
        revision=found.revision,
        fingerprint=fingerprint(found.path, checkpoint.headers),
        parameters=parameters,
        left_out=tuple(part for part in parameters if part in left_out_parts(adapter)),
        lora=describe_lora(checkpoint),
        layers=text.num_hidden_layers,
        default_layers=choose_layers("default", text.num_hidden_layers),
        hidden_size=text.hidden_size,
        vision_width=adapter.vision_width(config),
        image_token=adapter.image_token,
        image_token_id=tokenizer.convert_tokens_to_ids(adapter.image_token),
        stop_ids=stop_ids,
        longrope_border_tokens=adapter.longrope_border(config),
        example_prompt=prompt,
        example_token_ids=tuple(tokenizer(prompt, add_special_tokens=False)["input_ids"]),
        memory_bytes={str(dtype).removeprefix("torch."): bytes_in(dtype) for dtype in DTYPES},
        free_bytes=free_memory(),
    )


def describe_lora(checkpoint: Checkpoint) -> str:
    """Where the LoRA that image input needs lies, in words."""
    beside = checkpoint.adapter.lora_folder
    if beside is None:
        return "the family has none"
    if not checkpoint.has_lora:
        return f"no {beside}/: merged into the weights, or missing, which no file tells"
    return "beside the weights"


def free_memory() -> dict[str, int]:
    """Free bytes of main memory and of every CUDA device."""
    free = {"cpu": psutil.virtual_memory().available}
    for index in range(torch.cuda.device_count()):
        free[f"cuda:{index}"] = torch.cuda.mem_get_info(index)[0]
    return free
