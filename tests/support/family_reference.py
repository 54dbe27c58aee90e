"""The rows of the family suite, and the reference for the numbers: transformers' own procedure.

One sample, no padding, float32; prompt, pixels and masks from transformers' processor and chat template, states
from output_hidden_states, answers from generate. It shares no code with midsight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AyaVisionForConditionalGeneration,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridForConditionalGeneration,
    FastVlmForConditionalGeneration,
    Gemma3ForConditionalGeneration,
    Gemma3nForConditionalGeneration,
    Gemma4ForConditionalGeneration,
    Glm4vForConditionalGeneration,
    Glm4vMoeForConditionalGeneration,
    Idefics3ForConditionalGeneration,
    InternVLForConditionalGeneration,
    Llama4ForConditionalGeneration,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionForConditionalGeneration,
    Mistral3ForConditionalGeneration,
    MllamaForConditionalGeneration,
    Molmo2ForConditionalGeneration,
    Ovis2ForConditionalGeneration,
    PaliGemmaForConditionalGeneration,
    Phi4MultimodalForCausalLM,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeForConditionalGeneration,
    SmolVLMForConditionalGeneration,
)
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from midsight.families.llama4 import add_image_outputs
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
from midsight.testing.pixtral import write_pixtral
from midsight.testing.qwen2_5_vl import write_qwen2_5_vl, write_qwen2_vl, write_qwen3_vl, write_qwen3_vl_moe
from midsight.testing.qwen3_5 import write_qwen3_5, write_qwen3_5_moe
from support.reference import Forward, Reference, mean_over_real_patches


def mean_over_real_tiles(output: Any, inputs: Any, _model: Any) -> torch.Tensor:
    """Every position of every real tile, CLS too, each weighing the same."""
    real = inputs["aspect_ratio_mask"][0].bool()
    return output.last_hidden_state[0][real].flatten(0, 1).double().mean(dim=0)


def mean_over_patches(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch that enters the merger."""
    return output.last_hidden_state.double().mean(dim=0)


def mean_over_squares(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch of every square, after the encoder's last norm."""
    return output.last_hidden_state.flatten(0, 1).double().mean(dim=0)


def mean_over_both_encoders(_output: Any, inputs: Any, model: Any) -> torch.Tensor:
    """Every patch as the aligner takes it: the large encoder's features, then SigLIP's after its last norm."""
    made = model.model.get_image_features(inputs["pixel_values"], inputs["high_res_pixel_values"])
    both = torch.cat([made.high_res_vision_last_hidden_state, made.last_hidden_state], dim=-1)
    return both.flatten(0, 1).double().mean(dim=0)


def mean_over_last_states(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch of every square after the last layer, before the encoder's norm."""
    return output.hidden_states[-1].flatten(0, 1).double().mean(dim=0)


def mean_over_lines(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch of every image after the last layer; the tower gives those of all images in one row."""
    return output.hidden_states[-1][0].double().mean(dim=0)


def mean_over_squares_without_class_token(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch of every square after the last layer, without CLS."""
    return output.last_hidden_state[:, 1:].flatten(0, 1).double().mean(dim=0)


def mean_without_class_token(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch of the last layer but one, without CLS."""
    return output.hidden_states[-2][:, 1:].flatten(0, 1).double().mean(dim=0)


def mean_over_pooled_patches(output: Any, inputs: Any, model: Any) -> torch.Tensor:
    """The patches that are pooled for some token, in the feature layers side by side."""
    layers = model.config.adapter_config.vision_feature_layer
    features = torch.cat([output.hidden_states[layer + 1] for layer in layers], dim=-1).flatten(0, 1)
    pooled = inputs["image_token_pooling"].unique()
    return features[pooled[pooled >= 0].long()].double().mean(dim=0)


def mean_over_packed_patches(output: Any, inputs: Any, model: Any) -> torch.Tensor:
    """The patches that transformers packs for the decoder: it packs their numbers, with -1 after each line."""
    features = output.hidden_states[-2][:, 1:].flatten(0, 1)
    tiles = [
        image_size_to_num_patches(size, model.config.image_grid_pinpoints, model.config.vision_config.image_size)
        for size in inputs["image_sizes"]
    ]
    numbers = torch.arange(len(features), dtype=torch.float64).view(sum(tiles), -1, 1)
    newline = torch.tensor([-1.0], dtype=torch.float64)
    packed, _ = model.model.pack_image_features(numbers.split(tiles), inputs["image_sizes"], "default", newline)
    kept = torch.cat(packed).flatten()
    return features[kept[kept >= 0].long()].double().mean(dim=0)


def mean_over_placed_patches(output: Any, inputs: Any, _model: Any) -> torch.Tensor:
    """Every patch that has a place in an image; padding has none."""
    placed = (inputs["image_position_ids"] >= 0).all(dim=-1)
    return output.last_hidden_state[placed].double().mean(dim=0)


def mean_over_map(output: Any, _inputs: Any, _model: Any) -> torch.Tensor:
    """Every place of the feature map of every square."""
    return output.last_hidden_state.double().mean(dim=(0, 2, 3))


def mean_over_scaled_map(output: Any, _inputs: Any, model: Any) -> torch.Tensor:
    """The same, in a map that transformers has scaled in place before this reads it."""
    return output.last_hidden_state.double().mean(dim=(0, 2, 3)) / model.config.vision_config.hidden_size**0.5


def mean_over_scaled_patches(output: Any, inputs: Any, model: Any) -> torch.Tensor:
    """The patches of which transformers makes tokens: it packs a mark of each, and zeros after each line."""
    features = output.hidden_states[-1].flatten(0, 1)
    config, sizes = model.config, inputs["image_sizes"]
    side = config.vision_config.image_size
    tiles = [1] * len(sizes)
    if len(sizes) == 1:
        tiles = [image_size_to_num_patches(sizes[0], config.image_grid_pinpoints, side)]
    marks = torch.eye(len(features)).view(sum(tiles), -1, len(features))
    packed, _ = model.model.pack_image_features(
        marks.split(tiles), sizes, torch.zeros(len(features)), config.vision_aspect_ratio
    )
    read = torch.cat(packed).amax(dim=0) > 1e-6
    return features[read].double().mean(dim=0)


@dataclass(frozen=True)
class Family:
    """What the tests need to know of a family, said apart from midsight."""

    write: Callable[..., Path]
    model: Any
    image_token_id: int
    tower: str
    """The module whose output has the encoder's features."""
    vision_mean: Callable[[Any, Any, Any], Any]
    stop_ids: tuple[int, ...]
    reference: Callable[..., Any]
    pixels: str = "pixel_values"
    text_in_template: str = "part['text']"
    decoder: str = "model.language_model"
    head: str = "lm_head"
    embedding_may_be_on: Literal["disk", "cpu"] = "disk"
    """Llama 4's class sends token ids where the embedding's weight is, which is nowhere for one on disk."""
    first_by: Literal["none", "template", "tokenizer", "processor"] = "none"
    """Who begins a prompt with the first token."""
    completed: Callable[[str], str] = str
    """What the processor makes of a rendered prompt before it tokenises it, if it begins the prompt."""
    given: Callable[[str], str] = str
    """What the processor takes, from what it makes of it."""
    takes_habit: bool = False
    """Whether the processor takes from the tokenizer the habit of beginning every text with a first token."""
    words: str = ""
    """Added tokens that a question may have, as a regular expression."""
    first_tokens: int = 1
    """How often the first token is in a prompt that the tokenizer begins with it."""
    refuses_system: str = ""
    """What the template says about a system turn with an image; empty if it takes one."""
    text_system: bool = False
    """Whether the template takes a system turn as one text only."""
    own_system: str = ""
    """How a prompt begins without the system turn that the template adds of its own; empty if it adds none."""
    interleaves: bool = True
    """Whether the template keeps the places of images between texts."""
    trim: Callable[[str], str] = str
    """What the template makes of the user's text after an image."""
    tied: bool = False
    """Whether the head is the token embedding, which is not stored twice."""
    shares: bool = True
    """Whether questions on the same images have a prefix in common."""
    keeps_state: bool = False
    """Whether some layers keep a state in place of keys: then no prefix is shared, and padding has to come first."""
    active_stream: int | None = None
    """Which of several streams is a layer's hidden state; then transformers' last one is before the final norm."""
    tokens_of_every_image: int | None = None
    """Image tokens of an image, if they do not depend on its size."""
    crops: bool = True
    """Whether the processor cuts images into crops."""
    refuses_thin: str = ""
    """What is said about an image of 2 x 450 pixels; empty if it is taken."""
    resizings: tuple[str, ...] = ("pil", "transformers")
    """The ways to resize that the image processor has."""
    misfit: Mapping[str, Any] = field(default_factory=dict)
    """Settings of an image processor that does not fit the encoder."""

    @property
    def shares_prefix(self) -> bool:
        """Whether questions on the same images are computed on one prefix."""
        return self.shares and not self.keeps_state


def fix(model: Any) -> None:
    """Tokens before the image get nothing from Llama's cross-attention, as in Meta's code.

    transformers 5.24 cannot call Llama 4's class without a fix.
    """
    if type(model).__name__ == Llama4ForConditionalGeneration.__name__:
        add_image_outputs(model)
    for layer in model.modules():
        if hasattr(layer, "cross_attn"):
            seen: dict[str, Any] = {}
            layer.register_forward_pre_hook(
                lambda _, __, kwargs, seen=seen: seen.update(mask=kwargs["full_text_row_masked_out_mask"]),
                with_kwargs=True,
            )
            layer.cross_attn.register_forward_hook(
                lambda _, __, output, seen=seen: (
                    output[0] if seen["mask"] is None else output[0] * seen["mask"][:, 0],
                    output[1],
                )
            )


class FamilyReference:
    """One sample at a time through transformers."""

    def __init__(
        self,
        folder: Path,
        family: Family,
        *,
        fixed: bool = True,
        keep: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.family, self.folder, self.fixed, self.keep, self.dtype = family, folder, fixed, keep, dtype
        self.image_token_id = family.image_token_id
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.image_processors = {
            "pil": AutoImageProcessor.from_pretrained(folder, backend="pil"),
            "transformers": self.processor.image_processor,
        }

    @cached_property
    def model(self) -> Any:
        model = self.family.model.from_pretrained(self.folder, dtype=self.dtype).eval()
        if self.fixed:
            fix(model)
        return model

    def prompt(self, n_images: int, question: str, system: str | None = None) -> str:
        """What the folder's own chat template renders, and the first token if the processor puts it there."""
        content = [{"type": "image"}] * n_images + [{"type": "text", "text": question}]
        turns: list[Any] = [{"role": "user", "content": content}]
        if system is not None:
            parts = [{"type": "text", "text": system}]
            turns.insert(0, {"role": "system", "content": system if self.family.text_system else parts})
        return self.family.completed(
            self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        )

    def inputs(
        self, images: list[Image.Image], question: str, *, pixels: str = "pil", system: str | None = None
    ) -> Any:
        self.processor.image_processor = self.image_processors[pixels]
        text = self.prompt(len(images), question, system)
        if self.family.first_by == "processor":
            text = self.family.given(text)
        first = self.processor.tokenizer.bos_token
        has_first = first is not None and text.startswith(first)  # the rule of apply_chat_template
        # as apply_chat_template gives them: a list for each prompt, which LLaVA-OneVision tells from one image each
        made = self.processor(text=text, images=[images], return_tensors="pt", add_special_tokens=not has_first)
        made.pop("labels", None)  # for training
        if made.get("pixel_values") is not None and made["pixel_values"].dtype == torch.bfloat16:  # Llama 4's
            made["pixel_values"] = made["pixel_values"].to(self.dtype)
        return made

    @torch.inference_mode()
    def forward(self, inputs: Any) -> Forward:
        """The full forward of one prompt with output_hidden_states."""
        seen: dict[str, Any] = {}
        decoder, tower = map(self.model.get_submodule, (self.family.decoder, self.family.tower))
        hooks = [
            decoder.norm.register_forward_pre_hook(lambda _, args: seen.update(residual=args[0][0].float().numpy())),
            decoder.norm.register_forward_hook(lambda _, __, output: seen.update(normed=output)),
            tower.register_forward_hook(lambda _, __, output: seen.update(feature=output)),
        ]
        try:
            output = self.model(**inputs, output_hidden_states=True, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
        states, stream = output.hidden_states, self.family.active_stream
        if stream is not None:
            states = [*(one[stream] for one in states[:-1]), seen["normed"]]
            seen["residual"] = output.hidden_states[-1][stream, 0].float().numpy()
        hidden_states = torch.stack([*states])[:, 0].float().numpy()
        mean = self.family.vision_mean(seen["feature"], inputs, self.model)
        return Forward(hidden_states, seen["residual"], mean.numpy())

    @torch.inference_mode()
    def answer(self, inputs: Any, max_new_tokens: int, **kwargs: Any) -> list[int]:
        """Token ids of the greedy answer, the stop token included."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(self.family.stop_ids),
            **kwargs,
        )
        return output[0, inputs["input_ids"].shape[1] :].tolist()


QWEN: dict[str, Any] = {
    "image_token_id": 151655,
    "tower": "model.visual",
    "vision_mean": mean_over_patches,
    "stop_ids": (151643, 151645),
    "reference": FamilyReference,
    "crops": False,
    "refuses_thin": "2 x 450 pixels is more than 200 times as long",
    "misfit": {"patch_size": 18},
}
GLM: dict[str, Any] = QWEN | {
    "tower": "model.visual.post_layernorm",
    "vision_mean": lambda output, _inputs, _model: output.double().mean(dim=0),
}
QWEN3_5: dict[str, Any] = {
    "image_token_id": 248056,
    "stop_ids": (248044, 248046),
    "text_in_template": "item.text",
    "trim": str.rstrip,
    "keeps_state": True,
}
LLAVA: dict[str, Any] = {
    "image_token_id": 32000,
    "tower": "model.vision_tower",
    "stop_ids": (2,),
    "reference": FamilyReference,
    "text_in_template": "content['text']",
    "first_by": "tokenizer",
    "interleaves": False,
    "misfit": {"crop_size": {"height": 70, "width": 70}},
}
DEEPSEEK: dict[str, Any] = {
    "image_token_id": 100015,
    "tower": "model.vision_model",
    "stop_ids": (100001,),
    "reference": FamilyReference,
    "text_in_template": "content['text']",
    "first_by": "tokenizer",
    "own_system": "User: ",
    "trim": str.rstrip,
    "tokens_of_every_image": 16,
    "misfit": {"size": {"height": 70, "width": 70}},
}
IDEFICS: dict[str, Any] = {
    "tower": "model.vision_model",
    "decoder": "model.text_model",
    "vision_mean": mean_over_squares,
    "reference": FamilyReference,
    "text_in_template": "line['text']",
    "first_by": "template",
    "misfit": {"max_image_size": {"longest_edge": 70}},
}

FAMILIES = {
    "phi4_multimodal": Family(
        write_phi4_multimodal,
        Phi4MultimodalForCausalLM,
        image_token_id=200010,
        tower="model.embed_tokens_extend.image_embed.img_processor",
        vision_mean=lambda output, inputs, _model: mean_over_real_patches(output, inputs),
        stop_ids=(199999, 200020),
        reference=Reference,
        pixels="image_pixel_values",
        text_in_template="message['content']",
        refuses_thin="thinner than",
    ),
    "mllama": Family(
        write_mllama,
        MllamaForConditionalGeneration,
        image_token_id=128256,
        tower="model.vision_model",
        vision_mean=mean_over_real_tiles,
        stop_ids=(128001, 128008, 128009),
        reference=FamilyReference,
        first_by="template",
        given=lambda text: text.replace("<|begin_of_text|>", ""),
        refuses_system="Prompting with images is incompatible with system",
        tokens_of_every_image=1,
        misfit={"max_image_tiles": 2},
    ),
    "qwen2_5_vl": Family(write_qwen2_5_vl, Qwen2_5_VLForConditionalGeneration, own_system="<|im_start|>user\n", **QWEN),
    "qwen2_vl": Family(write_qwen2_vl, Qwen2VLForConditionalGeneration, own_system="<|im_start|>user\n", **QWEN),
    "qwen3_vl": Family(write_qwen3_vl, Qwen3VLForConditionalGeneration, **QWEN),
    "glm4v": Family(
        write_glm4v,
        Glm4vForConditionalGeneration,
        **GLM | {"image_token_id": 151343, "stop_ids": (151329, 151336, 151338, 151348)},
        text_in_template="part.text",
        text_system=True,
    ),
    "glm4v_moe": Family(
        write_glm4v_moe,
        Glm4vMoeForConditionalGeneration,
        **GLM | {"image_token_id": 151363, "stop_ids": (151329, 151336, 151338)},
        text_in_template="part.text",
    ),
    "qwen3_vl_moe": Family(write_qwen3_vl_moe, Qwen3VLMoeForConditionalGeneration, **QWEN),
    "qwen3_5": Family(write_qwen3_5, Qwen3_5ForConditionalGeneration, **QWEN | QWEN3_5),
    "qwen3_5_moe": Family(write_qwen3_5_moe, Qwen3_5MoeForConditionalGeneration, **QWEN | QWEN3_5),
    "llava": Family(
        write_llava,
        LlavaForConditionalGeneration,
        vision_mean=mean_without_class_token,
        tokens_of_every_image=16,
        **LLAVA,
    ),
    "llava_next": Family(
        write_llava_next, LlavaNextForConditionalGeneration, vision_mean=mean_over_packed_patches, **LLAVA
    ),
    "llava_onevision": Family(
        write_llava_onevision,
        LlavaOnevisionForConditionalGeneration,
        image_token_id=151646,
        tower="model.vision_tower",
        vision_mean=mean_over_scaled_patches,
        stop_ids=(151645,),
        reference=FamilyReference,
        text_in_template="content['text']",
        interleaves=False,
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "deepseek_vl": Family(
        write_deepseek_vl, DeepseekVLForConditionalGeneration, vision_mean=mean_over_squares, **DEEPSEEK
    ),
    "deepseek_vl_hybrid": Family(
        write_deepseek_vl_hybrid,
        DeepseekVLHybridForConditionalGeneration,
        vision_mean=mean_over_both_encoders,
        **DEEPSEEK,
    ),
    "fast_vlm": Family(
        write_fast_vlm,
        FastVlmForConditionalGeneration,
        image_token_id=151646,
        tower="model.vision_tower",
        vision_mean=mean_over_map,
        stop_ids=(151645,),
        reference=FamilyReference,
        text_in_template="content['text']",
        own_system="<|im_start|>user\n",
        interleaves=False,
        tokens_of_every_image=16,
        misfit={"crop_size": {"height": 70, "width": 70}},
    ),
    "gemma3": Family(
        write_gemma3,
        Gemma3ForConditionalGeneration,
        image_token_id=262144,
        tower="model.vision_tower",
        vision_mean=mean_over_squares,
        stop_ids=(1, 106),
        reference=FamilyReference,
        text_in_template="item['text']",
        first_by="template",
        trim=str.strip,
        tied=True,
        tokens_of_every_image=16,
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "gemma3n": Family(
        write_gemma3n,
        Gemma3nForConditionalGeneration,
        image_token_id=262145,
        tower="model.vision_tower",
        vision_mean=mean_over_scaled_map,
        stop_ids=(1, 106),
        reference=FamilyReference,
        text_in_template="item['text']",
        first_by="template",
        trim=str.strip,
        tied=True,
        active_stream=0,
        tokens_of_every_image=16,
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "gemma4": Family(
        write_gemma4,
        Gemma4ForConditionalGeneration,
        image_token_id=258880,
        tower="model.vision_tower.encoder",
        vision_mean=mean_over_placed_patches,
        stop_ids=(1, 106),
        reference=FamilyReference,
        text_in_template="item['text']",
        text_system=True,
        first_by="template",
        trim=str.strip,
        tied=True,
        crops=False,
        misfit={"patch_size": 14},
    ),
    "idefics3": Family(
        write_idefics3,
        Idefics3ForConditionalGeneration,
        image_token_id=128257,
        stop_ids=(128001, 128258),
        **IDEFICS,
    ),
    "smolvlm": Family(
        write_smolvlm, SmolVLMForConditionalGeneration, image_token_id=49190, stop_ids=(49279,), **IDEFICS
    ),
    "internvl": Family(
        write_internvl,
        InternVLForConditionalGeneration,
        image_token_id=151667,
        tower="model.vision_tower",
        vision_mean=mean_over_squares_without_class_token,
        stop_ids=(151645,),
        reference=FamilyReference,
        text_in_template="content['text']",
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "ovis2": Family(
        write_ovis2,
        Ovis2ForConditionalGeneration,
        image_token_id=151665,
        tower="model.vision_tower.transformer",
        vision_mean=mean_over_squares,
        stop_ids=(151645,),
        reference=FamilyReference,
        text_in_template="content['text']",
        own_system="<|im_start|>user\n",
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "aya_vision": Family(
        write_aya_vision,
        AyaVisionForConditionalGeneration,
        image_token_id=255036,
        tower="model.vision_tower",
        vision_mean=mean_over_last_states,
        stop_ids=(255001,),
        reference=FamilyReference,
        text_in_template="content['text']",
        first_by="template",
        tied=True,
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "mistral3": Family(
        write_mistral3,
        Mistral3ForConditionalGeneration,
        image_token_id=10,
        tower="model.vision_tower",
        vision_mean=mean_over_lines,
        stop_ids=(2,),
        reference=FamilyReference,
        text_in_template="block['text']",
        first_by="template",
        own_system="<s>[INST]",
        crops=False,
        refuses_thin="2 x 450 pixels is more than 196 times as long",
        misfit={"size": {"longest_edge": 200}},
    ),
    "pixtral": Family(
        write_pixtral,
        LlavaForConditionalGeneration,
        image_token_id=10,
        tower="model.vision_tower",
        vision_mean=mean_over_lines,
        stop_ids=(2,),
        reference=FamilyReference,
        text_in_template='chunk["text"]',
        text_system=True,
        first_by="template",
        crops=False,
        refuses_thin="2 x 450 pixels is more than 98 times as long",
        misfit={"size": {"longest_edge": 200}},
    ),
    "llama4": Family(
        write_llama4,
        Llama4ForConditionalGeneration,
        image_token_id=200092,
        tower="vision_model.layernorm_post",
        vision_mean=lambda output, _inputs, _model: output[:, :-1].flatten(0, 1).double().mean(dim=0),
        stop_ids=(200001, 200007, 200008),
        reference=FamilyReference,
        text_in_template="content['text']",
        decoder="language_model.model",
        head="language_model.lm_head",
        embedding_may_be_on="cpu",
        first_by="template",
        resizings=("transformers",),
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "paligemma": Family(
        write_paligemma,
        PaliGemmaForConditionalGeneration,
        image_token_id=257152,
        tower="model.vision_tower",
        vision_mean=mean_over_squares,
        stop_ids=(1,),
        reference=FamilyReference,
        text_in_template="content['text']",
        first_by="processor",
        completed=lambda text: "<image><bos>".join(text.rsplit("<image>", 1)) + "\n",
        given=lambda text: text.replace("<bos>", "").removesuffix("\n"),
        takes_habit=True,
        words=r"<(loc\d{4}|seg\d{3})>",
        refuses_system="PaliGemma takes no system turn",
        interleaves=False,
        tied=True,
        shares=False,
        tokens_of_every_image=16,
        misfit={"size": {"height": 70, "width": 70}},
    ),
    "molmo2": Family(
        write_molmo2,
        Molmo2ForConditionalGeneration,
        image_token_id=151938,
        tower="model.vision_tower",
        vision_mean=mean_over_pooled_patches,
        stop_ids=(151645,),
        reference=FamilyReference,
        text_in_template="content['text']",
        first_by="processor",
        completed=lambda text: f"<|im_end|>{text}",
        given=lambda text: text.removeprefix("<|im_end|>"),
        first_tokens=3,
        refuses_system="Conversation roles must alternate",
        interleaves=False,
        crops=False,
        resizings=("transformers",),
        misfit={"size": {"height": 70, "width": 70}},
    ),
}
"""The suite's rows: every test of tests/families runs for each, unless it says why not."""
WITHOUT_PHI = [name for name in FAMILIES if name != "phi4_multimodal"]
"""For tests of what Phi-4 has elsewhere: a published format of its own, and no `model.language_model`."""
