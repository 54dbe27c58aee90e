"""Phi-4-multimodal as Microsoft publishes it (`model_type: phi4mm`), read without its remote code."""
