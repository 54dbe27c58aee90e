"""Loading a model folder: its weights in the chosen dtype, on the chosen device, with its LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from midsight.checkpoints.adapter import AdapterOrigin, find_model
from midsight.checkpoints.checkpoint import Checkpoint, CheckpointFormat, LoadChoice, loaded_parameters
from midsight.checkpoints.device_map import SPARE_MEMORY, dispatch, free_by_device
from midsight.checkpoints.fingerprint import fingerprint
from midsight.checkpoints.generation import AnswerSettings, read_generation
from midsight.checkpoints.hub import how_to_download_again
from midsight.checkpoints.load_options import (
    DeviceMap,
    Lora,
    LoraMode,
    closest_to_float32,
    validate_loading,
)
from midsight.checkpoints.open_folder import open_checkpoint
from midsight.checkpoints.quiet import quiet_transformers
from midsight.errors import MidsightError, ModelFileError, Option, counted, first_line, quoted
from midsight.families.family import Family, apply_fixes
from midsight.families.family_file import FamilyFile, read_proved_file
from midsight.families.inputs import attention_chunk, keeps_state, layer_types, sliding_window
from midsight.families.rotary import rotary_limit
from midsight.memory import free_memory
from midsight.prompts.chat_template import ChatTemplate, describe_template, find_template


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, and everything that decides its numbers."""

    hf_model: Any
    """transformers' model, an nn.Module with config and generation_config, in eval mode and with its bugs fixed."""
    processor: Any
    """transformers' processor, or ProcessorParts: it has `tokenizer` and `image_processor`."""
    family: Family
    """The family's declarations."""
    chat_template: ChatTemplate | None
    """The folder's own chat template, or the family's if the folder has no usable one; None if neither exists."""
    name: str
    """Folder or hub id, as given."""
    revision: str | None
    """Commit on the hub; None for a plain folder or a wrapped model."""
    format: CheckpointFormat
    """How the folder stores its model."""
    fingerprint: str
    """SHA-256 of the folder's files, or of the weights of a wrapped model, hex."""
    dtype: torch.dtype
    """The dtype of the decoder's weights."""
    device: torch.device
    """Where the weights are; of a model on several devices, where its inputs go."""
    sliding_window: int | None
    """Number of tokens, itself included, that a token reads in the decoder's sliding layers; None without any."""
    answer_settings: AnswerSettings
    """What the model's generation config changes about greedy answers, and the token ids that end them."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """`merged`, `unmerged` or `off`; `in the weights` if the folder has no LoRA, `none` if the family has none, `as
    given` for a wrapped model."""
    fixes: tuple[str, ...]
    """The bugs that were fixed at load, one sentence each."""
    notes: tuple[str, ...]
    """What a user should know about the load, one sentence each."""
    adapters: tuple[str, ...] = ()
    """Names of the adapters that are on in a wrapped model."""
    adapter: AdapterOrigin | None = None
    """Where base and adapter come from, if an adapter's folder was loaded."""
    family_file: FamilyFile | None = None
    """The user's file that declares the family, if there is one."""
    attention_chunk: int | None = None
    """Number of tokens of a chunk, in layers in which a token reads only its chunk of the prompt; None without any."""

    @property
    def has_weights(self) -> bool:
        """Whether the weights are in memory."""
        return not isinstance(self.hf_model, WithoutWeights)

    @property
    def tokenizer(self) -> Any:
        """Transformers' tokenizer."""
        return self.processor.tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, from the folder's generation config."""
        return self.answer_settings.stop_ids

    @property
    def longrope_threshold(self) -> int | None:
        """Longest prompt, in tokens, that uses the short rotary factors; None without longrope."""
        return self.family.decoder.longrope_threshold(self.config)

    @property
    def layer_types(self) -> tuple[str, ...]:
        """The kinds of attention layers that the decoder tells apart by name; empty if it has one kind."""
        return layer_types(self.config)

    @property
    def keeps_state(self) -> bool:
        """Whether some layers cache one state of all tokens before in place of keys; then padding stands first."""
        return keeps_state(self.config)

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longest prompt that the model takes, in tokens; None if its config sets none."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def rotary_limit(self) -> int | None:
        """Longest prompt with its answer on which the rotary factors stay the same, in tokens; None if they always do,
        or change as longrope's do.
        """
        return rotary_limit(self.config)

    @property
    def config(self) -> Any:
        """Transformers' config of the whole model."""
        return self.hf_model.config

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return self.config.get_text_config().num_hidden_layers

    @property
    def hidden_size(self) -> int:
        """Width of the decoder's hidden states."""
        return self.config.get_text_config().hidden_size

    @property
    def pad_id(self) -> int:
        """Token id of padding."""
        return self.tokenizer.pad_token_id


@dataclass(frozen=True)
class WithoutWeights:
    """Stands for transformers' model as long as the weights are not loaded."""

    config: Any
    """transformers' config of the whole model."""
    account: Callable[[], None]
    """Raises MidsightError if a tensor is missing, extra or misshapen; reads headers only."""
    load: Callable[[], tuple[Any, tuple[str, ...]]]
    """Makes transformers' model with its weights, and notes about it; raises MidsightError."""


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    base: str | Path | None = None,
    base_revision: str | None = None,
    device_map: DeviceMap | None = None,
    family: str | Path | FamilyFile | None = None,
    audio: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """Loads a model, in transformers' format or in the published format of Phi-4-multimodal.

    Args:
        source: Model folder or hub id, or those of a PEFT adapter.
        revision: Branch, tag or commit of a hub id.
        dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto` is the checkpoint's dtype on a GPU; on a CPU it is
            float32 if that fits in memory, else the checkpoint's.
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:N`.
        lora: `auto`, `merged`, `unmerged` or `off`: how an adapter, and a LoRA that image input needs, are applied.
        base: Folder or hub id of an adapter's base model; by default the one that the adapter names.
        base_revision: Branch, tag or commit of the base model's hub id; by default the one that the adapter names.
        device_map: `auto` or a mapping from numbers of decoder layers to devices or `disk`, for a model that is larger
            than one device.
        family: A file with the model's family and its proof beside it, for one that midsight does not know; or such a
            file that is being proved.
        audio: Load the audio tower too, which no image prompt uses.
        weights: Without them `hf_model` has only a config, which is enough for a dry run.

    Returns:
        The model.

    Raises:
        MidsightError: The model cannot be loaded, or an argument has a wrong value.
    """
    opened = open_model(
        source,
        revision=revision,
        dtype=dtype,
        device=device,
        lora=lora,
        base=base,
        base_revision=base_revision,
        device_map=device_map,
        family=family,
        audio=audio,
    )
    if weights:
        return add_weights(opened)
    opened.hf_model.account()
    return opened


def open_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    base: str | Path | None = None,
    base_revision: str | None = None,
    device_map: DeviceMap | None = None,
    family: str | Path | FamilyFile | None = None,
    audio: bool = False,
) -> LoadedModel:
    """A model as `load_model` makes it, from its small files and tensor headers; `add_weights` loads the rest."""
    validate_loading({"dtype": dtype, "device": device, "lora": lora, "device_map": device_map})
    target = choose_device(device)
    family_file = read_proved_file(family) if isinstance(family, str | Path) else family
    found = find_model(source, revision=revision, base=base, base_revision=base_revision, family_file=family_file)
    folder = found.folder.path
    with quiet_transformers(), how_to_download_again(folder):
        checkpoint = open_checkpoint(folder, found.adapter, family_file)
        declared = checkpoint.family
        torch_dtype, dtype_notes = choose_dtype(dtype, target, checkpoint)
        mode, lora_notes = choose_lora(lora, torch_dtype, checkpoint, folder)
        processor = load_processor(checkpoint, folder)
        template, template_notes = find_chat_template(processor, declared, str(source))
        generation = read_generation(folder, processor.tokenizer, checkpoint.config)
    origin = found.origin(checkpoint.headers)
    base_note = (f"{source} is an adapter of {origin.base}.",) if origin else ()

    def account() -> None:
        with quiet_transformers(), how_to_download_again(folder):
            checkpoint.account()

    def load() -> tuple[Any, tuple[str, ...]]:
        free = {} if device_map is None else free_by_device(target)
        at = target if device_map is None else torch.device("cpu")  # dispatched from there
        with quiet_transformers(), how_to_download_again(folder):
            hf_model = checkpoint.load_weights(LoadChoice(torch_dtype, at, mode, unused=audio)).eval()
        hf_model.generation_config = generation.config
        return hf_model, () if device_map is None else (dispatch(hf_model, declared, device_map, target, free),)

    return LoadedModel(
        hf_model=WithoutWeights(checkpoint.config, account, load),
        processor=processor,
        family=declared,
        chat_template=template,
        name=str(source),
        revision=found.revision,
        format=checkpoint.format,
        fingerprint=origin.fingerprint if origin else fingerprint(folder, checkpoint.headers),
        dtype=torch_dtype,
        device=target,
        sliding_window=sliding_window(checkpoint.config),
        attention_chunk=attention_chunk(checkpoint.config),
        answer_settings=generation.settings,
        attention="not loaded",
        lora=mode or ("in the weights" if declared.stored.lora_folder else "none"),
        fixes=(),
        notes=(*base_note, *checkpoint.notes, *dtype_notes, *lora_notes, *generation.notes, *template_notes),
        adapter=origin,
        family_file=family_file,
    )


def add_weights(model: LoadedModel) -> LoadedModel:
    """The model with its weights in memory and its bugs fixed; unchanged if they are there. Raises MidsightError."""
    if model.has_weights:
        return model
    hf_model, notes = model.hf_model.load()
    return replace(
        model,
        hf_model=hf_model,
        attention=hf_model.config._attn_implementation,
        fixes=apply_fixes(hf_model, model.family),
        notes=(*model.notes, *notes),
    )


def find_chat_template(processor: Any, family: Family, source: str) -> tuple[ChatTemplate | None, tuple[str, ...]]:
    """The chat template of a model, None if neither folder nor family has one; and notes about it.

    `source` is the folder, hub id or processor that the notes name.
    """
    template = find_template(processor, family.prompt)
    note = describe_template(processor, family.prompt, template, folder=source, name=family.name)
    return template, (note,) if note else ()


def load_processor(checkpoint: Checkpoint, folder: Path) -> Any:
    """The folder's processor; raises MidsightError if it cannot make the family's prompts and images."""
    processor = checkpoint.load_processor()
    family, tokenizer = checkpoint.family, processor.tokenizer
    try:
        family.vision.validate_processor(processor, checkpoint.config)
    except MidsightError:
        raise
    except Exception as error:  # a value of the wrong type, which it compares
        raise ModelFileError(f"{folder} has settings of images that are not usable ({first_line(error)})") from error
    if not isinstance(tokenizer.model_max_length, int | float):
        path = folder / "tokenizer_config.json"
        raise ModelFileError(f"{path} says {quoted(repr(tokenizer.model_max_length))} for model_max_length", path)
    if tokenizer.pad_token_id is None:
        raise MidsightError(
            f"{folder / 'tokenizer_config.json'} does not name a pad_token that the tokenizer has; add it."
        )
    if family.prompt.image_token not in tokenizer.get_vocab():
        raise ModelFileError(
            f"The tokenizer of {folder} lacks the token {family.prompt.image_token}, which stands for images",
            folder / "tokenizer.json",
        )
    return processor


def choose_device(device: str) -> torch.device:
    """The device that `device` names; `auto` is the first CUDA device, or the CPU if there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MidsightError(
            Option("device", device),
            f" does not exist: torch sees {counted(torch.cuda.device_count(), 'CUDA device')}; give one of them, or "
            "auto.",
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise MidsightError(Option("device", device), " does not exist: torch sees no Apple GPU; give cpu.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, checkpoint: Checkpoint) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the weights in memory, and notes about it."""
    if dtype != "auto":
        return getattr(torch, dtype), ()
    stored = checkpoint.config.dtype or checkpoint.config.get_text_config().dtype
    if stored not in (torch.bfloat16, torch.float16):
        stored = torch.float32
    if device.type != "cpu":
        return stored, ()
    needed = 4 * loaded_parameters(checkpoint, "merged")
    free = free_memory()
    if needed <= SPARE_MEMORY * free:
        return torch.float32, ()
    note = (
        f"The weights need {needed / 1e9:.1f} GB in float32 and {free / 1e9:.1f} GB are free, "
        f"so they are loaded in {str(stored).removeprefix('torch.')}."
    )
    return stored, (note,)


def choose_lora(
    lora: Lora, dtype: torch.dtype, checkpoint: Checkpoint, folder: Path
) -> tuple[LoraMode | None, tuple[str, ...]]:
    """How the LoRA beside the weights is applied, None if there is no such LoRA; and notes about it."""
    lora_folder = checkpoint.family.stored.lora_folder
    lacks_own = lora_folder is not None and not checkpoint.has_own_lora
    notes = (missing_lora_note(str(folder), f"{lora_folder}/"),) if lacks_own else ()
    if checkpoint.has_lora:
        return (closest_to_float32(dtype) if lora == "auto" else lora), notes
    if lora != "auto":
        raise MidsightError(
            Option("lora", lora), f" needs a LoRA beside the weights, and {folder} has none; leave the option out."
        )
    return None, notes


def missing_lora_note(source: str, what: str) -> str:
    """The note about a model that has no LoRA for images beside its weights; `what` names where it would be."""
    return (
        f"{source} has no {what}, so its weights are used unchanged: that is right if the LoRA for images is "
        "merged into them, and gives another model's numbers if the LoRA is missing."
    )
