"""Loading a model folder: what is in it, at which precision, where, and with its LoRA."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil
import torch
import transformers
from torch import nn

from midsight.errors import MidsightError
from midsight.models.adapter import Adapter, submodule
from midsight.models.catalogue import find_adapter
from midsight.models.fingerprint import fingerprint, parameter_bytes

Lora = Literal["unmerged", "off"]
"""The LoRA that image input needs: applied beside the weights, or left out (another model's numbers)."""

BYTES_OF_STORED_DTYPE = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
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
    fingerprint: str
    """Of the folder's files; empty for a model that was wrapped."""
    dtype: torch.dtype
    """Of the decoder's weights."""
    device: torch.device
    """Where the weights are."""
    attention: str
    """transformers' name of the attention kernel."""
    lora: str
    """`unmerged` or `off`; `as given` for a model that was wrapped."""
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
    def stop_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, from the folder's generation config."""
        eos = self.hf_model.generation_config.eos_token_id
        return tuple(sorted(eos if isinstance(eos, list) else [eos]))

    @property
    def pad_id(self) -> int:
        """Token id that fills rows of a batch."""
        return self.tokenizer.pad_token_id


def load_model(
    source: str | Path, *, dtype: str = "auto", device: str = "auto", lora: Lora = "unmerged"
) -> LoadedModel:
    """Loads a model folder in transformers' own layout.

    dtype: auto, float32, bfloat16 or float16; auto is the checkpoint's on a GPU, and float32 on CPU
    where it fits in memory. device: auto, cpu, mps, cuda or cuda:N. lora: `unmerged` applies the
    LoRA that image input needs, `off` leaves it out. Raises MidsightError.
    """
    if lora not in get_args(Lora):
        raise MidsightError(f"--lora {lora!r} is unknown; give {' or '.join(get_args(Lora))}.")
    folder = Path(source)
    target = choose_device(device)
    with quiet_transformers():
        config = read_config(folder)
        adapter = find_adapter(config.architectures or [], str(source))
        torch_dtype, notes = choose_dtype(dtype, target, config, folder)
        hf_model = load_weights(folder, adapter, torch_dtype)
        if adapter.lora_folder and lora != "off":
            add_lora(hf_model, folder / adapter.lora_folder, adapter)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        image_processor = transformers.AutoImageProcessor.from_pretrained(folder, **LOCAL)
    hf_model.eval().to(target)
    return LoadedModel(
        hf_model=hf_model,
        tokenizer=tokenizer,
        image_processor=image_processor,
        adapter=adapter,
        name=str(source),
        fingerprint=fingerprint(folder),
        dtype=torch_dtype,
        device=target,
        attention=hf_model.config._attn_implementation,
        lora=lora,
        mends=adapter.mends(hf_model),
        notes=notes,
    )


def wrap_model(hf_model: nn.Module, processor: Any) -> LoadedModel:
    """A model of a known family that is loaded already, with its weights as they are.

    The family's mends are applied to `hf_model` itself. Raises MidsightError for an unknown family.
    """
    adapter = find_adapter([type(hf_model).__name__], f"The model of class {type(hf_model).__name__}")
    hf_model.eval()
    embedding: Any = submodule(hf_model, adapter.lm_head).weight
    config: Any = hf_model.config
    return LoadedModel(
        hf_model=hf_model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        adapter=adapter,
        name=config.name_or_path or type(hf_model).__name__,
        fingerprint="",
        dtype=embedding.dtype,
        device=embedding.device,
        attention=config._attn_implementation,
        lora="as given",
        mends=adapter.mends(hf_model),
        notes=(),
    )


def read_config(folder: Path) -> Any:
    """The folder's config; raises MidsightError where it is no model folder that transformers can load."""
    if not folder.is_dir():
        raise MidsightError(f"{folder} is no folder; give the folder of a downloaded model.")
    path = folder / "config.json"
    if not path.is_file():
        raise MidsightError(f"{folder} has no config.json; give the folder of a model in transformers' layout.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        model_type = raw.get("model_type")
    except (ValueError, AttributeError):
        raise MidsightError(f"{path} is no JSON object; download it again.") from None
    if model_type not in transformers.CONFIG_MAPPING:
        raise MidsightError(
            f"{path} has model_type {model_type!r}, which transformers {transformers.__version__} does not load "
            "without remote code; give a folder converted to transformers' own layout."
        )
    if not list(folder.glob("*.safetensors")):
        raise MidsightError(f"{folder} has no safetensors weights; midsight loads no other kind of weights.")
    return transformers.AutoConfig.from_pretrained(folder, **LOCAL)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' load reports and progress bars off the terminal; what they say is checked here."""
    verbosity = transformers.logging.get_verbosity()
    had_bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if had_bars:
            transformers.logging.enable_progress_bar()


def load_weights(folder: Path, adapter: Adapter, dtype: torch.dtype) -> Any:
    """The model with the folder's tensors in place; raises MidsightError where one is missing, extra or misshapen."""
    architecture = getattr(transformers, adapter.architecture)
    hf_model, report = architecture.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            names = sorted(map(str, report[kind]))
            raise MidsightError(
                f"{folder} has {len(names)} {kind.removesuffix('_keys')} tensors, {names[0]} the first; "
                f"it is no whole {adapter.architecture}, download it again."
            )
    return hf_model


def add_lora(hf_model: Any, folder: Path, adapter: Adapter) -> None:
    """Loads the LoRA of a folder in PEFT's layout and switches it on; raises MidsightError where it is not whole."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise MidsightError(
                f"{folder} has no {name}, and {adapter.family} needs its LoRA for images; "
                "add the file, or load with lora='off' if it is merged into the weights."
            )
    report = hf_model.load_adapter(str(folder), adapter_name="vision")
    missing = sorted(name for name in report.missing_keys if ".lora_" in name)
    if missing or report.unexpected_keys:
        name = (missing or sorted(report.unexpected_keys))[0]
        raise MidsightError(f"{folder} does not fit {adapter.family}: the tensor {name} has no counterpart.")
    hf_model.set_adapter("vision")


def choose_device(device: str) -> torch.device:
    """The device that `device` names; auto is the first CUDA device, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise MidsightError(f"--device {device!r} is unknown; give auto, cpu, mps, cuda or cuda:N.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise MidsightError(f"--device {device} is not there: torch sees {torch.cuda.device_count()} CUDA devices.")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise MidsightError("--device mps is not there: torch sees no Apple GPU.")
    return chosen


def choose_dtype(dtype: str, device: torch.device, config: Any, folder: Path) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of the weights in memory, and what to tell the user about it."""
    if dtype != "auto":
        if dtype not in {"float32", "bfloat16", "float16"}:
            raise MidsightError(f"--dtype {dtype!r} is unknown; give auto, float32, bfloat16 or float16.")
        return getattr(torch, dtype), ()
    stored = config.dtype or torch.float32
    if device.type != "cpu":
        return stored, ()
    needed = sum(4 * size // BYTES_OF_STORED_DTYPE.get(name, 4) for name, size in parameter_bytes(folder).items())
    free = psutil.virtual_memory().available
    if needed <= SPARE_MEMORY * free:
        return torch.float32, ()
    note = (
        f"The weights need {needed / 1e9:.1f} GB in float32 and {free / 1e9:.1f} GB are free, "
        f"so they are loaded in {str(stored).removeprefix('torch.')}."
    )
    return stored, (note,)
