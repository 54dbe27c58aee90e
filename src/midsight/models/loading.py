"""Loading a model folder: what is in it, at which precision, where, and with its LoRA."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter, submodule
from midsight.models.catalogue import FAMILIES, find_adapter, open_checkpoint
from midsight.models.checkpoint import Checkpoint, LoadChoice, LoraMode, loaded_parameters
from midsight.models.fingerprint import fingerprint, weights_fingerprint
from midsight.models.generation import as_ids, check_stop_ids, read_generation
from midsight.models.hub import find_model_folder, how_to_download_again
from midsight.models.quiet import quiet_transformers

Lora = Literal["auto", "merged", "unmerged", "off"]
"""The LoRA that image input needs: added to the weights, applied beside them, or left out (another model's
numbers). `auto` merges in float32; in 16 bits it keeps the LoRA beside the weights, as the published code does:
rounding the merged weights once more can take the numbers farther from float32 (docs/checkpoints.md)."""

SPARE_MEMORY = 0.8
"""Share of the free memory that float32 weights may take before the checkpoint's dtype is used instead."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with everything that decides its numbers."""

    hf_model: Any
    """transformers' model (an nn.Module with config and generation_config), in eval mode, mended."""
    tokenizer: Any
    """transformers' tokenizer."""
    image_processor: Any
    """transformers' image processor."""
    adapter: Adapter
    """The family's declarations."""
    name: str
    """Folder or hub id as it was given."""
    revision: str | None
    """Commit of the hub, where the folder came from one."""
    layout: str
    """`transformers`, `published phi4mm`, or `in memory`."""
    fingerprint: str
    """Of the folder's files, or of the weights of a model that was wrapped."""
    dtype: torch.dtype
    """Of the decoder's weights."""
    device: torch.device
    """Where the weights are."""
    stop_ids: tuple[int, ...]
    """Token ids that end an answer, from the folder's generation config."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """`merged`, `unmerged` or `off`; `in the weights` where none lies beside them, `none` for a family that
    has none, `as given` for a model that was wrapped."""
    mends: tuple[str, ...]
    """What was corrected at load, a sentence each."""
    notes: tuple[str, ...]
    """What a user should know about the load, a sentence each."""

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
        """Token id that fills rows of a batch."""
        return self.tokenizer.pad_token_id


@dataclass(frozen=True)
class WithoutWeights:
    """What stands for transformers' model where its weights stay on disk."""

    config: Any
    """transformers' config of the whole model."""


def load_model(
    source: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora = "auto",
    audio: bool = False,
    weights: bool = True,
) -> LoadedModel:
    """Loads a model folder or hub id, in transformers' layout or as Phi-4-multimodal is published.

    revision: branch, tag or commit of a hub id. dtype: auto, float32, bfloat16 or float16; auto is the
    checkpoint's on a GPU, and float32 on CPU where it fits in memory. device: auto, cpu, mps, cuda or
    cuda:N. lora: auto, merged, unmerged or off. audio: load the audio tower too, which no image prompt
    uses. weights: without them `hf_model` is the config and nothing else, enough to plan a run. Raises MidsightError.
    """
    if lora not in get_args(Lora):
        raise MidsightError(f"--lora {lora!r} is unknown; give {' or '.join(get_args(Lora))}.")
    target = choose_device(device)
    found = find_model_folder(source, revision=revision)
    folder = found.path
    with quiet_transformers(), how_to_download_again(folder):
        checkpoint = open_checkpoint(folder)
        torch_dtype, dtype_notes = choose_dtype(dtype, target, checkpoint)
        mode, lora_notes = choose_lora(lora, torch_dtype, checkpoint, folder)
        tokenizer, image_processor = load_processors(checkpoint, folder)
        generation_config, stop_ids = read_generation(folder, tokenizer, vocab_size(checkpoint.config))
        hf_model: Any = WithoutWeights(checkpoint.config)
        if weights:
            hf_model = checkpoint.load_weights(LoadChoice(torch_dtype, target, mode, unused=audio)).eval()
            hf_model.generation_config = generation_config
        else:
            checkpoint.account()
    return LoadedModel(
        hf_model=hf_model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        adapter=checkpoint.adapter,
        name=str(source),
        revision=found.revision,
        layout=checkpoint.layout,
        fingerprint=fingerprint(folder, checkpoint.headers),
        dtype=torch_dtype,
        device=target,
        stop_ids=stop_ids,
        attention=hf_model.config._attn_implementation or "not loaded",
        lora=mode or ("in the weights" if checkpoint.adapter.lora_folder else "none"),
        mends=checkpoint.adapter.mends(hf_model) if weights else (),
        notes=(*dtype_notes, *lora_notes),
    )


def wrap_model(hf_model: Any, processor: Any) -> LoadedModel:
    """A model of a known family that is loaded already, with its weights as they are.

    It may be fine-tuned, quantised, or held by PEFT, whose active adapters stay on. The family's mends are
    applied to the model itself. Raises MidsightError for an unknown family, or a processor of another.
    """
    plain = without_peft(hf_model)
    kind = type(plain).__name__
    # a class of the user's own counts as the one it is made from
    known = [base.__name__ for base in type(plain).__mro__ if base.__name__ in FAMILIES]
    adapter = find_adapter(known or [kind], f"The model of class {kind}")
    tokenizer, image_processor = getattr(processor, "tokenizer", None), getattr(processor, "image_processor", None)
    config: Any = plain.config
    source = f"The processor of class {type(processor).__name__}"
    if tokenizer is None or image_processor is None or adapter.image_token not in tokenizer.get_vocab():
        raise MidsightError(
            f"{source} has no tokenizer with {adapter.image_token} and image processor; give the one that "
            f"AutoProcessor makes for {adapter.family}."
        )
    if tokenizer.pad_token_id is None:
        raise MidsightError(f"{source} has a tokenizer without pad_token; set tokenizer.pad_token.")
    adapter.check_image_processor(image_processor, config)
    plain.eval()
    # of all weights the last to be quantised, and where tokens go in
    embedding: Any = submodule(plain, adapter.token_embedding).weight
    stop_ids = as_ids(plain.generation_config.eos_token_id, "The model's generation config")
    check_stop_ids(stop_ids, tokenizer, vocab_size(config), "The model's generation config")
    return LoadedModel(
        hf_model=plain,
        tokenizer=tokenizer,
        image_processor=image_processor,
        adapter=adapter,
        name=config.name_or_path or kind,
        revision=None,
        layout="in memory",
        fingerprint=weights_fingerprint(plain),
        dtype=embedding.dtype,
        device=embedding.device,
        stop_ids=stop_ids,
        attention=config._attn_implementation,
        lora="as given",
        mends=adapter.mends(plain),
        notes=(),
    )


def without_peft(hf_model: Any) -> Any:
    """The transformers model inside one of PEFT's, its adapters' layers in place; any other as it is.

    Raises MidsightError for a kind of adapter that works outside the layers, as trained prompts do.
    """
    configs = getattr(hf_model, "peft_config", None)
    if configs is None or not hasattr(hf_model, "get_base_model"):
        return hf_model
    outside = [config.peft_type for config in configs.values() if config.is_prompt_learning]
    if outside:
        raise MidsightError(
            f"The PEFT model has {outside[0].value}, which adds trained prompts that midsight would leave out; "
            "give a model with LoRA or another kind that sits in the layers."
        )
    return hf_model.get_base_model()


def load_processors(checkpoint: Checkpoint, folder: Path) -> tuple[Any, Any]:
    """Tokenizer and image processor of a folder; raises MidsightError where they cannot make the family's prompts."""
    tokenizer, image_processor = checkpoint.load_tokenizer(), checkpoint.load_image_processor()
    checkpoint.adapter.check_image_processor(image_processor, checkpoint.config)
    if tokenizer.pad_token_id is None:
        raise MidsightError(f"{folder / 'tokenizer_config.json'} names no pad_token that the tokenizer has; add it.")
    if checkpoint.adapter.image_token not in tokenizer.get_vocab():
        raise MidsightError(
            f"The tokenizer of {folder} has no token {checkpoint.adapter.image_token}, which stands for images; "
            "download it again."
        )
    return tokenizer, image_processor


def vocab_size(config: Any) -> int:
    """Number of tokens that the language-model head tells apart."""
    return config.get_text_config().vocab_size


def choose_device(device: str) -> torch.device:
    """The device that `device` names; auto is the first CUDA device, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        if chosen.type not in ("cpu", "mps", "cuda") or (chosen.index is not None and chosen.type != "cuda"):
            raise RuntimeError(device)
    except RuntimeError:
        raise MidsightError(f"--device {device!r} is unknown; give auto, cpu, mps, cuda or cuda:N.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MidsightError(f"--device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise MidsightError("--device mps is not there: torch sees no Apple GPU.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, checkpoint: Checkpoint) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the weights in memory, and what to tell the user about it."""
    if dtype != "auto":
        if dtype not in {"float32", "bfloat16", "float16"}:
            raise MidsightError(f"--dtype {dtype!r} is unknown; give auto, float32, bfloat16 or float16.")
        return getattr(torch, dtype), ()
    stored = checkpoint.config.dtype
    if stored not in (torch.bfloat16, torch.float16):
        stored = torch.float32
    if device.type != "cpu":
        return stored, ()
    needed = 4 * loaded_parameters(checkpoint, "merged")
    free = psutil.virtual_memory().available
    if needed <= SPARE_MEMORY * free:
        return torch.float32, ()
    note = (
        f"The weights need {needed / 1e9:.1f} GB in float32 and {free / 1e9:.1f} GB are free, "
        f"so they are loaded in {str(stored).removeprefix('torch.')}."
    )
    return stored, (note,)


def closest_to_float32(dtype: torch.dtype) -> LoraMode:
    """How `--lora auto` applies a LoRA that lies beside the weights."""
    return "merged" if dtype == torch.float32 else "unmerged"


def choose_lora(
    lora: Lora, dtype: torch.dtype, checkpoint: Checkpoint, folder: Path
) -> tuple[LoraMode | None, tuple[str, ...]]:
    """How the LoRA beside the weights is applied, None where there is none, and what to tell the user about it."""
    beside = checkpoint.adapter.lora_folder
    if checkpoint.has_lora:
        return (closest_to_float32(dtype) if lora == "auto" else lora), ()
    if lora != "auto":
        raise MidsightError(f"--lora {lora} needs a LoRA beside the weights, and {folder} has none; leave it out.")
    if beside is None:
        return None, ()
    note = (
        f"{folder} has no {beside}/, so its weights are taken as they are: right if the LoRA for images is merged "
        "into them, another model's numbers if it is missing."
    )
    return None, (note,)
