"""Sizes of the published models, so that they can be compared without a download.

Only the fields that decide shapes are here; every other field is the default of transformers' config class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers

from midsight.checkpoints.checkpoint import ProcessorParts


@dataclass(frozen=True)
class PublishedModel:
    """A model on the hub."""

    hub_id: str
    """Its name, like owner/name."""
    architecture: str
    """transformers' class."""
    config_class: str
    """transformers' class of the config."""
    sizes: Mapping[str, Any]
    """Arguments of the config class."""
    origin: str
    """Where the sizes are from, and what they were compared with."""
    image_processor: str
    """transformers' class of the image processor."""
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    """Its published settings that decide the number of image tokens, where they are not the class's own."""
    also_published: str = ""
    """What the published files hold in addition to the model's parameters."""

    def config(self) -> Any:
        """Makes transformers' config of the model."""
        return getattr(transformers, self.config_class)(architectures=[self.architecture], **self.sizes)

    def processor(self) -> ProcessorParts:
        """Makes transformers' image processor of the model; it has no tokenizer."""
        return ProcessorParts(None, getattr(transformers, self.image_processor)(**self.image_settings))


REPEATED = "config.json as public code repeats it; not compared with the file"
"""Where sizes are from if the published file was not at hand."""
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
}
SIGLIP_384 = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "vision_use_head": False,
}
CLIP_SQUARES = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
QWEN_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}
QWEN3_IMAGES = {"patch_size": 16, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}

PUBLISHED = (
    PublishedModel(
        hub_id="microsoft/Phi-4-multimodal-instruct",
        architecture="Phi4MultimodalForCausalLM",
        config_class="Phi4MultimodalConfig",
        sizes={
            "vocab_size": 200064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 448,
                "patch_size": 14,
                "crop_size": 448,
            },
            "audio_config": {"bias_max_distance": 500},
        },
        image_processor="Phi4MultimodalImageProcessor",
        origin="config.json and tensors at revision 93f923e, compared",
        also_published="and 830,472,192 in two LoRAs, for images and for speech",
    ),
    PublishedModel(
        hub_id="meta-llama/Llama-3.2-11B-Vision-Instruct",
        architecture="MllamaForConditionalGeneration",
        config_class="MllamaConfig",
        sizes={
            "image_token_index": 128256,
            "text_config": {
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
            },
            "vision_config": {
                "hidden_size": 1280,
                "intermediate_size": 5120,
                "num_hidden_layers": 32,
                "num_global_layers": 8,
                "attention_heads": 16,
                "image_size": 560,
                "patch_size": 14,
                "max_num_tiles": 4,
                "intermediate_layers_indices": [3, 7, 15, 23, 30],
                "vision_output_dim": 7680,
            },
        },
        image_processor="MllamaImageProcessor",
        image_settings={"size": {"height": 560, "width": 560}, "max_image_tiles": 4},
        origin="config.json and the shapes of all tensors, compared",
    ),
    PublishedModel(
        hub_id="Qwen/Qwen2.5-VL-7B-Instruct",
        architecture="Qwen2_5_VLForConditionalGeneration",
        config_class="Qwen2_5_VLConfig",
        sizes={
            "text_config": QWEN_TEXT,
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
            },
        },
        image_processor="Qwen2VLImageProcessor",
        image_settings={"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="Qwen/Qwen2-VL-7B-Instruct",
        architecture="Qwen2VLForConditionalGeneration",
        config_class="Qwen2VLConfig",
        sizes={
            "text_config": QWEN_TEXT,
            "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "mlp_ratio": 4, "num_heads": 16},
        },
        image_processor="Qwen2VLImageProcessor",
        image_settings={"size": {"shortest_edge": 3136, "longest_edge": 12845056}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="Qwen/Qwen3-VL-8B-Instruct",
        architecture="Qwen3VLForConditionalGeneration",
        config_class="Qwen3VLConfig",
        sizes={
            "text_config": {
                "hidden_size": 4096,
                "intermediate_size": 12288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
            },
            "vision_config": {"out_hidden_size": 4096},
        },
        image_processor="Qwen2VLImageProcessor",
        image_settings=QWEN3_IMAGES,
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="zai-org/GLM-4.1V-9B-Thinking",
        architecture="Glm4vForConditionalGeneration",
        config_class="Glm4vConfig",
        sizes={"text_config": {}, "vision_config": {}},
        image_processor="Glm4vImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="zai-org/GLM-4.5V",
        architecture="Glm4vMoeForConditionalGeneration",
        config_class="Glm4vMoeConfig",
        sizes={
            "text_config": {"vocab_size": 151552, "head_dim": 128},
            "vision_config": {"intermediate_size": 10944},
        },
        image_processor="Glm4vImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="Qwen/Qwen3-VL-30B-A3B-Instruct",
        architecture="Qwen3VLMoeForConditionalGeneration",
        config_class="Qwen3VLMoeConfig",
        sizes={
            "text_config": {
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "moe_intermediate_size": 768,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "num_hidden_layers": 48,
                "num_attention_heads": 32,
                "num_key_value_heads": 4,
                "head_dim": 128,
            },
            "vision_config": {"out_hidden_size": 2048},
        },
        image_processor="Qwen2VLImageProcessor",
        image_settings=QWEN3_IMAGES,
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="Qwen/Qwen3.5-27B",
        architecture="Qwen3_5ForConditionalGeneration",
        config_class="Qwen3_5Config",
        sizes={
            "text_config": {
                "hidden_size": 5120,
                "intermediate_size": 17408,
                "num_hidden_layers": 64,
                "num_attention_heads": 24,
                "linear_num_value_heads": 48,
            },
            "vision_config": {"out_hidden_size": 5120},
        },
        image_processor="Qwen2VLImageProcessor",
        image_settings=QWEN3_IMAGES,
        origin=REPEATED,
        also_published="and layers that predict several tokens at once, which transformers leaves out",
    ),
    PublishedModel(
        hub_id="Qwen/Qwen3.5-35B-A3B",
        architecture="Qwen3_5MoeForConditionalGeneration",
        config_class="Qwen3_5MoeConfig",
        sizes={"text_config": {}, "vision_config": {"out_hidden_size": 2048}},
        image_processor="Qwen2VLImageProcessor",
        image_settings=QWEN3_IMAGES,
        origin=REPEATED,
        also_published="and layers that predict several tokens at once, which transformers leaves out",
    ),
    PublishedModel(
        hub_id="llava-hf/llava-1.5-7b-hf",
        architecture="LlavaForConditionalGeneration",
        config_class="LlavaConfig",
        sizes={
            "text_config": {"model_type": "llama", "vocab_size": 32064},
            "vision_config": CLIP,
        },
        image_processor="CLIPImageProcessor",
        image_settings=CLIP_SQUARES,
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="llava-hf/llava-v1.6-mistral-7b-hf",
        architecture="LlavaNextForConditionalGeneration",
        config_class="LlavaNextConfig",
        sizes={
            "text_config": {
                "model_type": "mistral",
                "vocab_size": 32064,
                "intermediate_size": 14336,
                "num_key_value_heads": 8,
                "sliding_window": None,
            },
            "vision_config": CLIP,
        },
        image_processor="LlavaNextImageProcessor",
        image_settings=CLIP_SQUARES,
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="llava-hf/llava-onevision-qwen2-7b-ov-hf",
        architecture="LlavaOnevisionForConditionalGeneration",
        config_class="LlavaOnevisionConfig",
        sizes={"text_config": {**QWEN_TEXT, "model_type": "qwen2", "vocab_size": 152128}},
        image_processor="LlavaOnevisionImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="KamilaMila/FastVLM-7B",
        architecture="FastVlmForConditionalGeneration",
        config_class="FastVlmConfig",
        sizes={
            "image_seq_length": 256,
            "text_config": {**QWEN_TEXT, "model_type": "qwen2", "vocab_size": 152128},
        },
        image_processor="CLIPImageProcessor",
        image_settings={"size": {"shortest_edge": 1024}, "crop_size": {"height": 1024, "width": 1024}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="google/gemma-3-4b-it",
        architecture="Gemma3ForConditionalGeneration",
        config_class="Gemma3Config",
        sizes={
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "sliding_window": 1024,
            },
            "vision_config": {
                **SIGLIP,
                "model_type": "siglip_vision_model",
                "image_size": 896,
                "vision_use_head": False,
            },
        },
        image_processor="Gemma3ImageProcessor",
        image_settings={"size": {"height": 896, "width": 896}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="google/gemma-3n-E4B-it",
        architecture="Gemma3nForConditionalGeneration",
        config_class="Gemma3nConfig",
        sizes={"text_config": {}, "vision_config": {}, "audio_config": {}},
        image_processor="SiglipImageProcessor",
        image_settings={"size": {"height": 768, "width": 768}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="google/gemma-4-E4B-it",
        architecture="Gemma4ForConditionalGeneration",
        config_class="Gemma4Config",
        sizes={
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 42,
                "num_key_value_heads": 2,
                "num_kv_shared_layers": 18,
                "final_logit_softcapping": 30.0,
            },
            "vision_config": {"use_clipped_linears": True},
            "audio_config": {},
        },
        image_processor="Gemma4ImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="HuggingFaceM4/Idefics3-8B-Llama3",
        architecture="Idefics3ForConditionalGeneration",
        config_class="Idefics3Config",
        sizes={
            "text_config": {
                "model_type": "llama",
                "vocab_size": 128259,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
            },
            "vision_config": {**SIGLIP, "image_size": 364},
        },
        image_processor="Idefics3ImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        architecture="SmolVLMForConditionalGeneration",
        config_class="SmolVLMConfig",
        sizes={
            "image_token_id": 49190,
            "scale_factor": 3,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 49280,
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
            },
            "vision_config": {**SIGLIP, "image_size": 384},
        },
        image_processor="SmolVLMImageProcessor",
        image_settings={"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}},
        origin="configs of SmolVLM and of smaller SmolVLM2 as public code repeats them; not compared with its own file",
    ),
    PublishedModel(
        hub_id="OpenGVLab/InternVL3-1B-hf",
        architecture="InternVLForConditionalGeneration",
        config_class="InternVLConfig",
        sizes={
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 151674,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
            },
            "vision_config": {"attention_bias": True},
        },
        image_processor="GotOcr2ImageProcessor",
        image_settings={"size": {"height": 448, "width": 448}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="thisisiron/Ovis2-1B-hf",
        architecture="Ovis2ForConditionalGeneration",
        config_class="Ovis2Config",
        sizes={
            "vocab_size": 151936,
            "hidden_size": 896,
            "text_config": {
                "model_type": "qwen2",
                "vocab_size": 151936,
                "hidden_size": 896,
                "intermediate_size": 4864,
                "num_hidden_layers": 24,
                "num_attention_heads": 14,
                "num_key_value_heads": 2,
            },
            "vision_config": {"image_size": 448, "hidden_stride": 2, "vocab_size": 65536},
        },
        image_processor="Ovis2ImageProcessor",
        image_settings={"size": {"height": 448, "width": 448}, "crop_to_patches": True},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="deepseek-community/deepseek-vl-1.3b-chat",
        architecture="DeepseekVLForConditionalGeneration",
        config_class="DeepseekVLConfig",
        sizes={
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 102400,
                "hidden_size": 2048,
                "intermediate_size": 5632,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
            },
            "vision_config": SIGLIP_384,
        },
        image_processor="DeepseekVLImageProcessor",
        origin="transformers' conversion script; not compared with the file",
    ),
    PublishedModel(
        hub_id="deepseek-community/deepseek-vl-7b-chat",
        architecture="DeepseekVLHybridForConditionalGeneration",
        config_class="DeepseekVLHybridConfig",
        sizes={
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "llama",
                "vocab_size": 102400,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 30,
                "num_attention_heads": 32,
            },
            "vision_config": SIGLIP_384,
            "high_res_vision_config": {"model_type": "sam_vision_model"},
        },
        image_processor="DeepseekVLHybridImageProcessor",
        origin="transformers' conversion script; not compared with the file",
    ),
    PublishedModel(
        hub_id="CohereLabs/aya-vision-8b",
        architecture="AyaVisionForConditionalGeneration",
        config_class="AyaVisionConfig",
        sizes={
            "alignment_intermediate_size": 28672,
            "text_config": {
                "model_type": "cohere2",
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
            },
            "vision_config": {
                **SIGLIP,
                "model_type": "siglip_vision_model",
                "image_size": 364,
                "vision_use_head": False,
            },
        },
        image_processor="GotOcr2ImageProcessor",
        image_settings={"size": {"height": 364, "width": 364}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        architecture="Mistral3ForConditionalGeneration",
        config_class="Mistral3Config",
        sizes={"tie_word_embeddings": False},
        image_processor="PixtralImageProcessor",
        image_settings={"size": {"longest_edge": 1540}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="mistral-community/pixtral-12b",
        architecture="LlavaForConditionalGeneration",
        config_class="LlavaConfig",
        sizes={
            "image_token_index": 10,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "text_config": {
                "model_type": "mistral",
                "vocab_size": 131072,
                "hidden_size": 5120,
                "intermediate_size": 14336,
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "sliding_window": None,
            },
            "vision_config": {"model_type": "pixtral"},
        },
        image_processor="PixtralImageProcessor",
        image_settings={"size": {"longest_edge": 1024}},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="meta-llama/Llama-4-Scout-17B-16E-Instruct",
        architecture="Llama4ForConditionalGeneration",
        config_class="Llama4Config",
        sizes={
            "text_config": {},
            "vision_config": {
                "hidden_size": 1408,
                "image_size": 336,
                "vision_output_dim": 4096,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        image_processor="Llama4ImageProcessor",
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="google/paligemma2-3b-mix-224",
        architecture="PaliGemmaForConditionalGeneration",
        config_class="PaliGemmaConfig",
        sizes={
            "image_token_index": 257152,
            "projection_dim": 2304,
            "hidden_size": 2304,
            "text_config": {"model_type": "gemma2", "vocab_size": 257216},
            "vision_config": {
                **SIGLIP,
                "model_type": "siglip_vision_model",
                "image_size": 224,
                "vision_use_head": False,
            },
        },
        image_processor="SiglipImageProcessor",
        image_settings={"size": {"height": 224, "width": 224}, "image_seq_length": 256},
        origin=REPEATED,
    ),
    PublishedModel(
        hub_id="allenai/Molmo2-4B",
        architecture="Molmo2ForConditionalGeneration",
        config_class="Molmo2Config",
        sizes={
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 9728,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5000000.0},
            },
            "adapter_config": {"intermediate_size": 9728, "text_hidden_size": 2560},
        },
        image_processor="Molmo2ImageProcessor",
        origin="config.json and number of parameters in a public copy of the folder, compared",
    ),
)
"""The published models, one of each family."""
