"""A small checkpoint in the format that Microsoft publishes, with both LoRAs and the audio tower."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from midsight.checkpoints.phi4mm.config import AUDIO, CARRIED, FIXED, MODEL_TYPE, VISION_HEADS
from midsight.checkpoints.phi4mm.tensors import native_name
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.random_weights import TOKENIZER

SPEECH_RANK = 5
SHARDS = 3

PUBLISHED_NAMES: tuple[tuple[str, str], ...] = (
    (r"^(model\.layers\..*_proj)\.weight$", r"\1.base_layer.weight"),
    (r"global_img_feature_extensor$", "glb_GN"),
    (r"sub_img_feature_extensor$", "sub_GN"),
    (r"img_projection_up\.", "img_projection.0."),
    (r"img_projection_down\.", "img_projection.2."),
    (r"audio_embed\.up_proj_for_speech\.", "audio_embed.audio_projection.speech.0."),
    (r"audio_embed\.down_proj_for_speech\.", "audio_embed.audio_projection.speech.2."),
    (r"audio_embed\.up_proj_for_vision_speech\.", "audio_embed.audio_projection.vision.0."),
    (r"audio_embed\.down_proj_for_vision_speech\.", "audio_embed.audio_projection.vision.2."),
    (r"(feed_forward_(?:in|out))\.gate_up_proj\.", r"\1.net.0.linear."),
    (r"(feed_forward_(?:in|out))\.down_proj\.", r"\1.net.2."),
    (r"(audio_embed\..*\.self_attn)\.o_proj\.", r"\1.linear_out."),
    (r"(audio_embed\..*\.self_attn)\.(q|k|v)_proj\.", r"\1.linear_\2."),
)
"""From native to published names."""


def write_published_phi4mm(folder: str | Path, *, seed: int = 0) -> Path:
    """Writes a small model folder in the published format of microsoft/Phi-4-multimodal-instruct.

    Weights and vision LoRA are those of `write_phi4_multimodal(..., seed=seed, vision_heads=16)`; the speech LoRA is
    random too.

    Args:
        folder: Where the files go; made if it does not exist.
        seed: Decides the weights.

    Returns:
        The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as native:
        write_phi4_multimodal(native, seed=seed, vision_heads=VISION_HEADS)
        publish(Path(native), folder, seed=seed)
    return folder


def publish(native: Path, folder: Path, *, seed: int = 0) -> None:
    """Writes a folder in transformers' format, with its LoRA in `vision-lora/`, again in the published format."""
    config = json.loads((native / "config.json").read_text(encoding="utf-8"))
    lora = json.loads((native / "vision-lora" / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = {published_name(name): tensor for name, tensor in load_file(native / "model.safetensors").items()}
    for name, tensor in load_file(native / "vision-lora" / "adapter_model.safetensors").items():
        tensors[name.removeprefix("base_model.model.").replace(".weight", ".vision.weight")] = tensor
    tensors |= speech_lora(tensors, Generator().manual_seed(seed))
    write_shards(tensors, folder)
    write_json(folder / "config.json", published_config(config, rank=lora["r"], alpha=lora["lora_alpha"]))
    for name in ("generation_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((native / name).read_bytes())
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    endoftext = "<|endoftext|>"
    tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), endoftext)
    write_json(
        folder / "tokenizer_config.json", {**tokens, "model_max_length": 131072, "tokenizer_class": "GPT2TokenizerFast"}
    )
    write_json(folder / "preprocessor_config.json", {"image_processor_type": "Phi4MMImageProcessor", "dynamic_hd": 36})


def published_name(native: str) -> str:
    """The published name of a tensor of transformers' class."""
    name = native
    for pattern, replacement in PUBLISHED_NAMES:
        name = re.sub(pattern, replacement, name)
    if native_name(name) != native:
        raise ValueError(f"{native} has no published name that is mapped back to it.")
    return name


def speech_lora(tensors: Mapping[str, Tensor], generator: Generator) -> dict[str, Tensor]:
    """Random factors of the speech LoRA beside every base weight."""
    factors: dict[str, Tensor] = {}
    for name, weight in sorted(tensors.items()):
        if name.endswith(".base_layer.weight"):
            module = name.removesuffix(".base_layer.weight")
            rows, columns = weight.shape
            for factor, shape in (("A", (SPEECH_RANK, columns)), ("B", (rows, SPEECH_RANK))):
                factors[f"{module}.lora_{factor}.speech.weight"] = torch.randn(shape, generator=generator).to(
                    weight.dtype
                )
    return factors


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Spreads the tensors over safetensors files and writes their index."""
    weight_map: dict[str, str] = {}
    names = sorted(tensors)
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[shard::SHARDS]
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def published_config(native: Mapping[str, Any], *, rank: int, alpha: float) -> dict[str, Any]:
    """The published config.json for a config of transformers' class."""
    rope, audio = native["rope_parameters"], native["audio_config"]
    config: dict[str, Any] = {name: native[name] for name in CARRIED}
    config |= {
        "eos_token_id": native["bos_token_id"],
        "partial_rotary_factor": rope["partial_rotary_factor"],
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"long_factor": rope["long_factor"], "short_factor": rope["short_factor"]},
        "torch_dtype": native["dtype"],
        "vision_lora": {"dp": 0.0, "layer": "layers.*", "lora_alpha": alpha, "r": rank},
        "speech_lora": {"dp": 0.01, "layer": "layers.*", "lora_alpha": 2 * SPEECH_RANK, "r": SPEECH_RANK},
        "auto_map": {"AutoModelForCausalLM": "modeling_phi4mm.Phi4MMForCausalLM"},
    }
    nested = {
        **FIXED,
        **{f"audio_processor.config.{name}": audio[field] for name, field in AUDIO.items()},
        "audio_processor.config.activation_checkpointing": {"interval": 1, "module": "transformer", "offload": False},
        "audio_processor.config.encoder_embedding_config.input_size": audio["input_size"],
        "embd_layer.audio_embd_layer.compression_rate": audio["time_reduction"],
        "embd_layer.audio_embd_layer.downsample_rate": audio["downsample_rate"],
        "embd_layer.audio_embd_layer.enable_gradient_checkpointing": True,
        "embd_layer.image_embd_layer.crop_size": native["vision_config"]["crop_size"],
        "embd_layer.image_embd_layer.enable_gradient_checkpointing": True,
    }
    for path, value in nested.items():
        *parents, field = path.split(".")
        at = config
        for parent in parents:
            at = at.setdefault(parent, {})
        at[field] = value
    if config["model_type"] != MODEL_TYPE:
        raise ValueError(f"{config['model_type']} is not {MODEL_TYPE}.")
    return config


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
