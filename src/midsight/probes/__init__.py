"""Probes: what can be predicted from stored vectors, against what the model's own confidence predicts."""
