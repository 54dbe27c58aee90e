"""Small checkpoints with random weights, and `check_family`: for people who add or port a model."""

from midsight.check.check import Check
from midsight.check.family_checks import check_family
from midsight.testing.mllama import write_mllama
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.phi4mm import write_published_phi4mm
from midsight.testing.qwen2_5_vl import write_qwen2_5_vl, write_qwen2_vl

__all__ = [
    "Check",
    "check_family",
    "write_mllama",
    "write_phi4_multimodal",
    "write_published_phi4mm",
    "write_qwen2_5_vl",
    "write_qwen2_vl",
]
