"""The reference for every number of Phi-4: transformers' own procedure, one sample, no padding, float32.

It shares no code with midsight: the model comes through from_pretrained and PEFT, the
inputs from transformers' processor, the states from output_hidden_states, the answers from
generate. The one correction is the vision tower's, without which transformers departs from the
published model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import peft
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoProcessor, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal import image_processing_phi4_multimodal

IMAGE_TOKEN = "<|endoftext10|>"
IMAGE_TOKEN_ID = 200010


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """||value - reference|| / ||reference||, in float64."""
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def add_lora(model: Any, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """PEFT's own layers, in the model's dtype; transformers' integration refuses the PEFT of its day."""
    peft.inject_adapter_in_model(peft.PeftConfig.from_pretrained(str(folder)), model, adapter_name="vision")
    report = peft.set_peft_model_state_dict(
        model, load_file(folder / "adapter_model.safetensors"), adapter_name="vision"
    )
    assert not report.unexpected_keys
    assert not [name for name in report.missing_keys if ".lora_" in name]
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)


def load_reference_model(
    folder: Path, *, fixed: bool = True, lora: bool = True, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> Any:
    """transformers' model with the vision LoRA on; `fixed` makes the vision tower bidirectional."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=dtype, **kwargs)
    if lora:
        add_lora(model, folder / "vision-lora", dtype)
    if fixed:
        for layer in model.model.embed_tokens_extend.image_embed.img_processor.encoder.layers:
            layer.self_attn.is_causal = False
    return model.eval()


@contextmanager
def pil_resizing() -> Iterator[None]:
    """transformers' processor with the published processor's resizing: PIL's bilinear filter on 8-bit images."""

    def resize(image: torch.Tensor, size: list[int]) -> torch.Tensor:
        pil = Image.fromarray(image.permute(1, 2, 0).numpy())
        resized = pil.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    patched = SimpleNamespace(resize=resize, pad=tvf.pad)
    with mock.patch.object(image_processing_phi4_multimodal, "tvF", patched):
        yield


@dataclass(frozen=True)
class Forward:
    """What one full forward leaves."""

    hidden_states: np.ndarray
    """float32 [layers + 1, tokens, hidden size]; the last entry is after the final norm."""
    last_residual: np.ndarray
    """float32 [tokens, hidden size]: what enters the final norm."""
    vision_mean: np.ndarray
    """float64 [vision width]: the tower's hidden_states[-2], meaned over all useful patches of real crops."""


def mean_over_real_patches(feature: torch.Tensor, inputs: Any) -> np.ndarray:
    """Padding crops come with a mask of ones, so real ones are counted from the image size."""
    masks = inputs["image_attention_mask"]
    by_image = feature.unflatten(0, masks.shape[:2])
    useful = []
    for image, (height, width) in enumerate(inputs["image_sizes"].tolist()):
        crops = 1 + (height // 448) * (width // 448)
        mask = masks[image, :crops].bool().flatten(1)
        useful.append(by_image[image, :crops][mask].double().numpy())
    return np.concatenate(useful).mean(axis=0)


class Reference:
    """One sample at a time through transformers."""

    image_token_id = IMAGE_TOKEN_ID

    def __init__(self, folder: Path, _family: Any = None, *, keep: bool = False, **kwargs: Any) -> None:
        self.folder, self.keep, self.kwargs = folder, keep, kwargs
        self.processor: Any = AutoProcessor.from_pretrained(folder)

    @cached_property
    def states_model(self) -> Any:
        return load_reference_model(self.folder, **self.kwargs)

    @cached_property
    def generating_model(self) -> Any:
        """Asking for hidden states after a plain forward raises in transformers, so generate has a model of its own."""
        return load_reference_model(self.folder, **self.kwargs)

    def prompt(self, n_images: int, question: str, system: str = "") -> str:
        """The published prompt."""
        system_turn = f"<|system|>{system}<|end|>" if system else ""
        return f"{system_turn}<|user|>{IMAGE_TOKEN * n_images}{question}<|end|><|assistant|>"

    def inputs(self, images: list[Image.Image], question: str, *, pixels: str = "pil", system: str = "") -> Any:
        text = self.prompt(len(images), question, system)
        if pixels == "pil":
            with pil_resizing():
                return self.processor(text=text, images=images, return_tensors="pt")
        return self.processor(text=text, images=images, return_tensors="pt")

    @torch.inference_mode()
    def forward(self, inputs: Any) -> Forward:
        """The full forward of one prompt with output_hidden_states."""
        seen: dict[str, Any] = {}
        model = self.states_model.model
        tower = model.embed_tokens_extend.image_embed.img_processor
        hooks = [
            model.norm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0][0].float().numpy())),
            tower.register_forward_hook(lambda _, __, output: seen.update(feature=output.hidden_states[-2])),
        ]
        try:
            # the logits of all 9,307 tokens of the largest case would take 7 GB
            output = self.states_model(**inputs, output_hidden_states=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        hidden_states = torch.stack(output.hidden_states)[:, 0].float().numpy()
        return Forward(hidden_states, seen["residual"], mean_over_real_patches(seen["feature"], inputs))

    @torch.inference_mode()
    def answer(self, inputs: Any, max_new_tokens: int, **kwargs: Any) -> list[int]:
        """Token ids of the greedy answer, the stop token included."""
        output = self.generating_model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=[200020, 199999], **kwargs
        )
        return output[0, inputs["input_ids"].shape[1] :].tolist()
