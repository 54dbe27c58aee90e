"""Folders of LoRAs that image input needs, known without a family's module, which imports torch."""

from __future__ import annotations

LORA_FOLDERS = {"Phi4MultimodalForCausalLM": "vision-lora"}
"""From transformers' class to the folder inside the model's; a family that is not here has no such LoRA."""
