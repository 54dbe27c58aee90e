"""The rows of the family suite, and the reference for the numbers: transformers' own procedure.

One sample, no padding, float32; prompt, pixels and masks from transformers' processor and chat template, states
from output_hidden_states, answers from generate. It shares no code with midsight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    MllamaForConditionalGeneration,
    Phi4MultimodalForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

from midsight.testing.mllama import write_mllama
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.qwen2_5_vl import write_qwen2_5_vl, write_qwen2_vl
from support.reference import Forward, Reference, mean_over_real_patches


def mean_over_real_tiles(output: Any, inputs: Any) -> torch.Tensor:
    """Every position of every real tile, CLS too, each weighing the same."""
    real = inputs["aspect_ratio_mask"][0].bool()
    return output.last_hidden_state[0][real].flatten(0, 1).double().mean(dim=0)


def mean_over_patches(output: Any, _inputs: Any) -> torch.Tensor:
    """Every patch that enters the merger."""
    return output.last_hidden_state.double().mean(dim=0)


@dataclass(frozen=True)
class Family:
    """What the tests need to know of a family, said apart from midsight."""

    write: Callable[..., Path]
    model: Any
    image_token_id: int
    tower: str
    vision_mean: Callable[[Any, Any], Any]
    stop_ids: tuple[int, ...]
    reference: Callable[..., Any]
    pixels: str = "pixel_values"
    text_in_template: str = "part['text']"


def fix(model: Any) -> None:
    """Tokens before the image get nothing from Llama's cross-attention, as in Meta's code."""
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            seen: dict[str, Any] = {}
            layer.register_forward_pre_hook(
                lambda _, __, kwargs, seen=seen: seen.update(mask=kwargs["full_text_row_masked_out_mask"]),
                with_kwargs=True,
            )
            layer.cross_attn.register_forward_hook(
                lambda _, __, output, seen=seen: (
                    output[0] if seen["mask"] is None else output[0] * seen["mask"][:, 0],
                    output[1],
                )
            )


class FamilyReference:
    """One sample at a time through transformers."""

    def __init__(
        self,
        folder: Path,
        family: Family,
        *,
        fixed: bool = True,
        keep: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.family, self.folder, self.fixed, self.keep, self.dtype = family, folder, fixed, keep, dtype
        self.image_token_id = family.image_token_id
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.image_processors = {
            "pil": AutoImageProcessor.from_pretrained(folder, backend="pil"),
            "transformers": AutoImageProcessor.from_pretrained(folder, backend="torchvision"),
        }

    @cached_property
    def model(self) -> Any:
        model = self.family.model.from_pretrained(self.folder, dtype=self.dtype).eval()
        if self.fixed:
            fix(model)
        return model

    def prompt(self, n_images: int, question: str, system: str | None = None) -> str:
        """The folder's own chat template."""
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
        turns: list[Any] = [{"role": "user", "content": content}]
        if system is not None:
            turns.insert(0, {"role": "system", "content": system})
        return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)

    def inputs(
        self, images: list[Image.Image], question: str, *, pixels: str = "pil", system: str | None = None
    ) -> Any:
        self.processor.image_processor = self.image_processors[pixels]
        text = self.prompt(len(images), question, system)
        return self.processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)

    @torch.inference_mode()
    def forward(self, inputs: Any) -> Forward:
        """The full forward of one prompt with output_hidden_states."""
        seen: dict[str, Any] = {}
        decoder, tower = self.model.model.language_model, self.model.get_submodule(self.family.tower)
        hooks = [
            decoder.norm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0][0].float().numpy())),
            tower.register_forward_hook(lambda _, __, output: seen.update(feature=output)),
        ]
        try:
            output = self.model(**inputs, output_hidden_states=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        hidden_states = torch.stack(output.hidden_states)[:, 0].float().numpy()
        mean = self.family.vision_mean(seen["feature"], inputs)
        return Forward(hidden_states, seen["residual"], mean.numpy())

    @torch.inference_mode()
    def answer(self, inputs: Any, max_new_tokens: int, **kwargs: Any) -> list[int]:
        """Token ids of the greedy answer, the stop token included."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.family.stop_ids),
            **kwargs,
        )
        return output[0, inputs["input_ids"].shape[1] :].tolist()


QWEN: dict[str, Any] = {
    "image_token_id": 151655,
    "tower": "model.visual",
    "vision_mean": mean_over_patches,
    "stop_ids": (151643, 151645),
    "reference": FamilyReference,
}

FAMILIES = {
    "phi4_multimodal": Family(
        write_phi4_multimodal,
        Phi4MultimodalForCausalLM,
        image_token_id=200010,
        tower="model.embed_tokens_extend.image_embed.img_processor",
        vision_mean=mean_over_real_patches,
        stop_ids=(199999, 200020),
        reference=Reference,
        pixels="image_pixel_values",
        text_in_template="message['content']",
    ),
    "mllama": Family(
        write_mllama,
        MllamaForConditionalGeneration,
        image_token_id=128256,
        tower="model.vision_model",
        vision_mean=mean_over_real_tiles,
        stop_ids=(128001, 128008, 128009),
        reference=FamilyReference,
    ),
    "qwen2_5_vl": Family(write_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration, **QWEN),
    "qwen2_vl": Family(write_qwen2_vl, Qwen2VLForConditionalGeneration, **QWEN),
}
"""The suite's rows: every test of tests/families runs for each, unless it says why not."""
WITHOUT_PHI = [name for name in FAMILIES if name != "phi4_multimodal"]
"""For tests of what Phi-4 has elsewhere: a published format of its own, and no `model.language_model`."""
