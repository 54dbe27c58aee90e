"""Taps: addresses of hidden states, and the hooks that take them."""
