"""Small checkpoints with random weights, and `check_family`: for people who add or port a model."""

from midsight.check.check import Check
from midsight.check.family_checks import check_family
from midsight.testing.aya_vision import write_aya_vision
from midsight.testing.deepseek_vl import write_deepseek_vl
from midsight.testing.deepseek_vl_hybrid import write_deepseek_vl_hybrid
from midsight.testing.fast_vlm import write_fast_vlm
from midsight.testing.gemma3 import write_gemma3
from midsight.testing.gemma3n import write_gemma3n
from midsight.testing.gemma4 import write_gemma4
from midsight.testing.glm4v import write_glm4v
from midsight.testing.glm4v_moe import write_glm4v_moe
from midsight.testing.idefics3 import write_idefics3, write_smolvlm
from midsight.testing.internvl import write_internvl
from midsight.testing.llama4 import write_llama4
from midsight.testing.llava import write_llava, write_llava_next
from midsight.testing.llava_onevision import write_llava_onevision
from midsight.testing.mistral3 import write_mistral3
from midsight.testing.mllama import write_mllama
from midsight.testing.molmo2 import write_molmo2
from midsight.testing.ovis2 import write_ovis2
from midsight.testing.paligemma import write_paligemma
from midsight.testing.phi4_multimodal import write_phi4_multimodal
from midsight.testing.phi4mm import write_published_phi4mm
from midsight.testing.pixtral import write_pixtral
from midsight.testing.qwen2_5_vl import write_qwen2_5_vl, write_qwen2_vl, write_qwen3_vl, write_qwen3_vl_moe
from midsight.testing.qwen3_5 import write_qwen3_5, write_qwen3_5_moe

__all__ = [
    "Check",
    "check_family",
    "write_aya_vision",
    "write_deepseek_vl",
    "write_deepseek_vl_hybrid",
    "write_fast_vlm",
    "write_gemma3",
    "write_gemma3n",
    "write_gemma4",
    "write_glm4v",
    "write_glm4v_moe",
    "write_idefics3",
    "write_internvl",
    "write_llama4",
    "write_llava",
    "write_llava_next",
    "write_llava_onevision",
    "write_mistral3",
    "write_mllama",
    "write_molmo2",
    "write_ovis2",
    "write_paligemma",
    "write_phi4_multimodal",
    "write_pixtral",
    "write_published_phi4mm",
    "write_qwen2_5_vl",
    "write_qwen2_vl",
    "write_qwen3_5",
    "write_qwen3_5_moe",
    "write_qwen3_vl",
    "write_qwen3_vl_moe",
    "write_smolvlm",
]
