"""What people run today: the procedure that scripts copy from each other, and plain batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.data import Row

PROMPT = "<|user|><|endoftext10|>{question}<|end|><|assistant|>"
"""The published prompt with transformers' own image token."""


@dataclass(frozen=True)
class Output:
    """The output of a procedure for one sample."""

    pooled_pixels: np.ndarray | None
    """float32 [448]: what the original stores as vision features; None for plain batches."""
    vision_token: dict[int, np.ndarray]
    """Hidden state at the last image token by layer, float32 [hidden size]."""
    query_token: dict[int, np.ndarray]
    """Hidden state at the last prompt token by layer, float32 [hidden size]."""
    answer_token_ids: list[int]
    """Generated tokens, including the stop token and any padding after it."""


@torch.inference_mode()
def original(model: Any, processor: Any, rows: Sequence[Row], layers: Sequence[int]) -> Iterator[Output]:
    """One sample at a time: the processor twice, a full forward with all hidden states and logits, then `generate`.

    A sample's `new_tokens` is its maximum number of new tokens; 0 skips `generate`.
    """
    for row in rows:
        with Image.open(row.image) as opened:
            image = opened.convert("RGB")
        text = PROMPT.format(question=row.question)
        pixels = processor(text=text, images=image, return_tensors="pt")["image_pixel_values"]
        while pixels.dim() > 2:
            pixels = pixels.mean(dim=1)
        inputs = processor(text=text, images=image, return_tensors="pt").to(model.device)
        output = model(**inputs, output_hidden_states=True)
        image_positions = (inputs["input_ids"][0] == model.config.vision_config.image_token_id).nonzero()
        vision_token = {k: to_numpy(output.hidden_states[k + 1][0, image_positions[-1, 0]]) for k in layers}
        query_token = {k: to_numpy(output.hidden_states[k + 1][0, -1]) for k in layers}
        answer = generate(model, inputs, row.new_tokens)[0] if row.new_tokens else []
        yield Output(to_numpy(pixels[0]), vision_token, query_token, answer)


@torch.inference_mode()
def plain_batches(
    model: Any, processor: Any, rows: Sequence[Row], layers: Sequence[int], batch_size: int
) -> Iterator[Output]:
    """Padded batches in transformers: a forward with all hidden states, then `generate` to the longest answer."""
    processor.tokenizer.padding_side = "left"
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        images = []
        for row in batch:
            with Image.open(row.image) as opened:
                images.append(opened.convert("RGB"))
        texts = [PROMPT.format(question=row.question) for row in batch]
        inputs = processor(text=texts, images=images, return_tensors="pt", padding=True).to(model.device)
        output = model(**inputs, output_hidden_states=True, logits_to_keep=1)
        is_image = inputs["input_ids"] == model.config.vision_config.image_token_id
        last_image = is_image.shape[1] - 1 - is_image.flip(1).int().argmax(dim=1)
        each = torch.arange(len(batch), device=model.device)
        at_image = {k: to_numpy(output.hidden_states[k + 1][each, last_image]) for k in layers}
        at_end = {k: to_numpy(output.hidden_states[k + 1][:, -1]) for k in layers}
        longest = max(row.new_tokens for row in batch)
        answers = generate(model, inputs, longest) if longest else [[] for _ in batch]
        for i, answer in enumerate(answers):
            yield Output(None, {k: at_image[k][i] for k in layers}, {k: at_end[k][i] for k in layers}, answer)


def generate(model: Any, inputs: Any, longest: int) -> list[list[int]]:
    """Greedy answers, as token ids."""
    output = model.generate(**inputs, max_new_tokens=longest, do_sample=False)
    return output[:, inputs["input_ids"].shape[1] :].tolist()


def to_numpy(states: torch.Tensor) -> np.ndarray:
    """A float32 copy in host memory."""
    return states.float().cpu().numpy().copy()
