"""Tiny checkpoints and checks, public: people who add or port a model use them."""

from midsight.testing.checks import Check, check_adapter
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.phi4mm import write_published_phi4mm

__all__ = ["Check", "check_adapter", "write_phi4_multimodal", "write_published_phi4mm"]
