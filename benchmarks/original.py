"""The procedure that scripts copy from each other, written out: one sample at a time, everything computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

Pair = tuple[Image.Image, str]
"""An image and a question."""

PROMPT = "<|user|><|endoftext10|>{question}<|end|><|assistant|>"
"""The published prompt with transformers' own image token."""


@torch.inference_mode()
def original(model: Any, processor: Any, pairs: Sequence[Pair], layers: Sequence[int], new_tokens: int) -> None:
    """For each pair: the processor twice, a full forward with all hidden states and logits, then `generate`.

    `new_tokens` 0 leaves `generate` out. What it computes is thrown away: only its cost is wanted.
    """
    for image, question in pairs:
        text = PROMPT.format(question=question)
        pixels = processor(text=text, images=image, return_tensors="pt")["image_pixel_values"]
        while pixels.dim() > 2:
            pixels = pixels.mean(dim=1)
        inputs = processor(text=text, images=image, return_tensors="pt").to(model.device)
        output = model(**inputs, output_hidden_states=True, use_cache=False)
        is_image = (inputs["input_ids"][0] == model.config.vision_config.image_token_id).nonzero()
        for layer in layers:
            states = output.hidden_states[layer + 1][0]
            for position in (is_image[-1, 0], -1):
                states[position].float().cpu().numpy()
        if new_tokens:
            generate(model, inputs, new_tokens)


@torch.inference_mode()
def plain_batches(
    model: Any, processor: Any, pairs: Sequence[Pair], layers: Sequence[int], new_tokens: int, batch_size: int
) -> None:
    """transformers in padded batches: a full forward with all hidden states, then `generate`."""
    processor.tokenizer.padding_side = "left"
    for start in range(0, len(pairs), batch_size):
        images, questions = zip(*pairs[start : start + batch_size], strict=True)
        texts = [PROMPT.format(question=question) for question in questions]
        inputs = processor(text=texts, images=list(images), return_tensors="pt", padding=True).to(model.device)
        output = model(**inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        for layer in layers:
            output.hidden_states[layer + 1][:, -1].float().cpu().numpy()
        if new_tokens:
            generate(model, inputs, new_tokens)


def generate(model: Any, inputs: Any, new_tokens: int) -> Any:
    """Greedy, exactly `new_tokens` tokens: random weights end where they like."""
    return model.generate(**inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
