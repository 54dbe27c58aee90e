"""`midsight check`: what a model folder is, and the proof of its numbers on this machine."""
