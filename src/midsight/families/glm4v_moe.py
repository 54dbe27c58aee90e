"""GLM-4.5V: GLM-4.1V with a mixture of experts in its decoder, and other control tokens.

Source of the prompt: token ids that transformers' and PaddleFormers' tests of zai-org/GLM-4.5V expect, and the chat
template of its relative GLM-OCR; of the modules: transformers' modeling_glm4v_moe.py.
"""

from __future__ import annotations

from dataclasses import replace

from midsight.families import glm4v

FAMILY = replace(
    glm4v.FAMILY,
    name="GLM-4.5V",
    architecture="Glm4vMoeForConditionalGeneration",
    prompt=replace(
        glm4v.FAMILY.prompt,
        placeholder=r"</?think>|/nothink|<\|(begin|end)_of_(image|video|box)\|>|<\|(video|observation|endoftext)\|>",
    ),
)
