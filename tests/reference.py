"""The procedure every number is held against: transformers' own, one sample, no padding, float32.

It shares no code with midsight: the model comes through from_pretrained and load_adapter, the
inputs from transformers' processor, the states from output_hidden_states, the answers from
generate. The one correction is the vision tower's, without which transformers departs from the
published model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvf
from transformers import AutoProcessor, Phi4MultimodalForCausalLM
from transformers.models.phi4_multimodal import image_processing_phi4_multimodal

IMAGE_TOKEN = "<|endoftext10|>"
IMAGE_TOKEN_ID = 200010


def relative_error(value: np.ndarray, reference: np.ndarray) -> float:
    """||value - reference|| / ||reference||, in float64."""
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    return float(np.linalg.norm(value - reference) / np.linalg.norm(reference))


def load_reference_model(folder: Path, *, mended: bool = True, lora: bool = True, **kwargs: Any) -> Any:
    """transformers' model with the vision LoRA on; `mended` makes the vision tower bidirectional."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model: Any = Phi4MultimodalForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs)
    if lora:
        model.load_adapter(str(folder / "vision-lora"), adapter_name="vision")
        model.set_adapter("vision")
    if mended:
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


class Reference:
    """One sample at a time through transformers."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        # asking for hidden states after a plain forward raises in transformers, so generate has a model of its own
        self.states_model = load_reference_model(folder, **kwargs)
        self.generating_model = load_reference_model(folder, **kwargs)

    def inputs(self, images: list[Image.Image], question: str, *, pixels: str = "pil", system: str = "") -> Any:
        system_turn = f"<|system|>{system}<|end|>" if system else ""
        text = f"{system_turn}<|user|>{IMAGE_TOKEN * len(images)}{question}<|end|><|assistant|>"
        if pixels == "pil":
            with pil_resizing():
                return self.processor(text=text, images=images, return_tensors="pt")
        return self.processor(text=text, images=images, return_tensors="pt")

    @torch.inference_mode()
    def states(self, inputs: Any) -> np.ndarray:
        """hidden_states of the full forward, float32 [layers + 1, tokens, hidden size]."""
        output = self.states_model(**inputs, output_hidden_states=True)
        return torch.stack(output.hidden_states)[:, 0].numpy()

    @torch.inference_mode()
    def last_residual(self, inputs: Any) -> np.ndarray:
        """What enters the final norm, float32 [tokens, hidden size]."""
        seen: list[torch.Tensor] = []
        hook = self.states_model.model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.states_model(**inputs, output_hidden_states=True)
        finally:
            hook.remove()
        return seen[0][0].numpy()

    @torch.inference_mode()
    def vision_mean(self, inputs: Any) -> np.ndarray:
        """Mean over all useful patches of the tower's own hidden_states[-2], float32 [vision width]."""
        tower = self.states_model.model.embed_tokens_extend.image_embed.img_processor
        useful: list[np.ndarray] = []
        sizes = inputs["image_sizes"].tolist()
        for image, (height, width) in enumerate(sizes):
            crops = 1 + (height // 448) * (width // 448)
            pixel_values = inputs["image_pixel_values"][image, :crops]
            mask = inputs["image_attention_mask"][image, :crops].bool()
            output = tower(pixel_values, patch_attention_mask=mask, output_hidden_states=True)
            useful.append(output.hidden_states[-2][mask.flatten(1)].numpy().astype(np.float64))
        return np.concatenate(useful).mean(axis=0)

    @torch.inference_mode()
    def answer(self, inputs: Any, max_new_tokens: int, **kwargs: Any) -> list[int]:
        """Token ids of the greedy answer, the stop token included."""
        output = self.generating_model.generate(
            **inputs, max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=[200020, 199999], **kwargs
        )
        return output[0, inputs["input_ids"].shape[1] :].tolist()
