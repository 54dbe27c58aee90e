"""The format in which Microsoft publishes Phi-4-multimodal (`model_type: phi4mm`), read without its remote code."""
