"""Tiny checkpoints and checks, public: people who add or port a model use them."""
