"""The demo model in training: transformers' own modules with a token table of the ids in use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional
from transformers import Phi4MultimodalForCausalLM

from midsight.demo.seeing import LORA_ALPHA, LORA_RANK, VOCABULARY_SIZE, seeing_config
from midsight.models.phi4_multimodal import encode_crops, make_tower_bidirectional
from midsight.testing.phi4_multimodal import LORA_TARGETS

IGNORED = -100
NEARNESS = 1.2
"""Size of queries and keys at the start: at 1.2 a patch reads a handful of others."""
GRID = 16
"""Image tokens on a side of one crop, after pooling."""
IMAGE_TOKENS = 2 * GRID * (GRID + 1) + 1
"""Of a picture that fills one sub-crop: its lines, a separator, the lines of the same crop again."""


class TokenTable(nn.Module):
    """Embedding rows of the ids in use, and one more that stands for all others."""

    offset: Tensor
    """Added to the logits: log of how many ids a row stands for."""

    def __init__(self, token_ids: Sequence[int], width: int) -> None:
        super().__init__()
        self.token_ids = list(token_ids)
        self.index = {token_id: i for i, token_id in enumerate(token_ids)}
        self.rows = nn.Parameter(torch.randn(len(token_ids) + 1, width) * 0.5)
        offset = torch.zeros(len(token_ids) + 1)
        offset[-1] = math.log(VOCABULARY_SIZE - len(token_ids))
        self.register_buffer("offset", offset)

    def forward(self, indices: Tensor) -> Tensor:
        """Embeddings [..., width] of row numbers."""
        return self.rows[indices]

    def logits(self, states: Tensor) -> Tensor:
        """Logits [..., rows]; the softmax is that of the whole vocabulary, all unused ids in the last row."""
        return functional.linear(states, self.rows) + self.offset


@dataclass
class Network:
    """Decoder, vision tower and projection of transformers' model, and the token table."""

    model: Phi4MultimodalForCausalLM
    """Its own embedding is not used."""
    table: TokenTable
    """Stands for embedding and head."""

    @property
    def embed(self) -> Any:
        """Tower, separators and projection."""
        return self.model.model.embed_tokens_extend.image_embed


def build(token_ids: Sequence[int], seed: int) -> Network:
    """Freshly drawn weights; the tower's attention bidirectional, as in the published model."""
    torch.manual_seed(seed)
    config = seeing_config()
    config.vocab_size, config.pad_token_id = 8, 0
    model = Phi4MultimodalForCausalLM(config)
    make_tower_bidirectional(model)
    embed: Any = model.model.embed_tokens_extend.image_embed
    draw_tower(embed.img_processor)
    nn.init.normal_(embed.global_img_feature_extensor)
    nn.init.normal_(embed.sub_img_feature_extensor)
    return Network(model, TokenTable(token_ids, config.hidden_size))


def draw_tower(tower: Any) -> None:
    """Weights that keep states of size one, pixels louder, positions as soft waves.

    Queries and keys of a layer begin as one turn of the states, so a patch first reads those that are near it
    and like it: where shapes are learned from scratch, the long search for them falls away.
    """
    for name, parameter in tower.named_parameters():
        if name.endswith("position_embedding.weight"):
            parameter.data.copy_(0.5 * waves(2 * GRID, parameter.shape[1]))
        elif name.endswith("q_proj.weight"):
            nn.init.orthogonal_(parameter, gain=NEARNESS)
        elif parameter.dim() > 1:
            loudness = 2.0 if name.endswith("patch_embedding.weight") else 1.0
            nn.init.normal_(parameter, std=loudness * parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for layer in tower.encoder.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight)


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column [side * side, width], from one wave a picture to one in four patches."""
    frequencies = 2 * math.pi * torch.logspace(0, math.log2(side / 4), width // 4, base=2) / side
    angles = torch.arange(side)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def add_lora(network: Network) -> None:
    """A fresh LoRA on the decoder's linear layers, on."""
    network.model.add_adapter(
        LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=LORA_TARGETS), "vision"
    )


def pooled_features(network: Network, pixels: Tensor) -> Tensor:
    """Float32 [pictures, 256, width]: what the tower says of crops [pictures, 3, 448, 448], pooled 2 x 2."""
    mask = torch.ones(len(pixels), 2 * GRID, 2 * GRID, dtype=torch.bool)
    features = encode_crops(network.model, pixels, mask)
    squares = features.view(len(pixels), 2 * GRID, 2 * GRID, -1).permute(0, 3, 1, 2)
    return functional.avg_pool2d(squares, 2).flatten(2).transpose(1, 2)


def window_features(network: Network, pixels: Tensor, corners: Tensor) -> Tensor:
    """Float32 [windows, tokens, width]: the tower on windows [windows, 3, side, side] alone, pooled 2 x 2.

    `corners` [windows, 2] are row and column of each window's first patch.
    """
    tower: Any = network.embed.img_processor
    patches = tower.embeddings.patch_embedding(pixels)
    side = patches.shape[-1]
    rows, columns = (corners[:, axis, None] + torch.arange(side) for axis in (0, 1))
    places = (rows[:, :, None] * 2 * GRID + columns[:, None, :]).flatten(1)
    states = patches.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(places)
    for layer in tower.encoder.layers[: len(tower.encoder.layers) + 1 + tower.config.feature_layer]:
        states = layer(states, None)
    squares = states.view(len(pixels), side, side, -1).permute(0, 3, 1, 2)
    return functional.avg_pool2d(squares, 2).flatten(2).transpose(1, 2)


def project(network: Network, features: Tensor) -> Tensor:
    """Image-token embeddings [pictures, 545, width] from pooled features; sub-crop and global crop are the same."""
    embed = network.embed
    pictures, _, width = features.shape
    separators = embed.sub_img_feature_extensor.expand(pictures, GRID, 1, width)
    lines = torch.cat([features.view(pictures, GRID, GRID, width), separators], dim=2).flatten(1, 2)
    sequence = torch.cat([lines, embed.global_img_feature_extensor.expand(pictures, 1, width), lines], dim=1)
    return project_tokens(network, sequence)


def project_tokens(network: Network, features: Tensor) -> Tensor:
    """Embeddings [..., width] of tower features or separators, one by one."""
    return network.embed.img_projection_down(functional.gelu(network.embed.img_projection_up(features)))


def decode(network: Network, embeddings: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
    """States after the final norm; `allowed` [1 or batch, 1, tokens, tokens] says who reads whom."""
    return network.model.model(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=allowed, use_cache=False
    ).last_hidden_state


def shared_prefix(prefix: int, questions: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions [1, tokens] and mask of `questions` rows of `length` behind one prefix, none reading another."""
    rows = torch.arange(questions * length) // length
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(questions * length) % length])
    owner = torch.cat([torch.full((prefix,), -1), rows])
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    allowed = causal & ((owner[None, :] == -1) | (owner[:, None] == owner[None, :]))
    return positions[None], allowed[None, None]


def answer_loss(network: Network, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the answer tokens, and for every row [rows] whether all of its answer is right."""
    kept = targets != IGNORED
    logits = network.table.logits(states[kept])
    loss = functional.cross_entropy(logits, targets[kept])
    wrong = torch.zeros_like(targets, dtype=torch.bool)
    wrong[kept] = logits.argmax(dim=-1) != targets[kept]
    return loss, ~wrong.any(dim=-1)
