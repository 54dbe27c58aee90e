"""The demo model during training: transformers' modules, with a token table of the used ids only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import Phi4MultimodalForCausalLM

from midsight.demo.seeing import LORA_ALPHA, LORA_RANK, VOCABULARY_SIZE, seeing_config
from midsight.families.phi4_multimodal import encode_crops, make_tower_bidirectional
from midsight.testing.phi4_multimodal import LORA_TARGETS

IGNORED = -100
QUERY_GAIN = 1.2
"""Initial size of queries and keys: at 1.2 a patch attends to a handful of others."""
GRID = 16
"""Image tokens along one side of a crop, after pooling."""
IMAGE_TOKENS = 2 * GRID * (GRID + 1) + 1
"""Image tokens of a picture with one sub-crop: lines of the sub-crop, a separator, lines of the global crop."""


class TokenTable(nn.Module):
    """Embedding rows of the used ids, and one row for all other ids."""

    offset: Tensor
    """Added to the logits: log of the number of ids that share a row."""

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
        """Logits [..., rows]; their softmax equals that over the whole vocabulary, unused ids in the last row."""
        return functional.linear(states, self.rows) + self.offset


@dataclass
class Network:
    """Decoder, vision tower and projection of transformers' model, and the token table."""

    model: Phi4MultimodalForCausalLM
    """transformers' model; its own embedding is not used."""
    table: TokenTable
    """Embedding and head."""

    @property
    def embed(self) -> Any:
        """Vision tower, separators and projection."""
        return self.model.model.embed_tokens_extend.image_embed


def build(token_ids: Sequence[int], seed: int) -> Network:
    """A network with random weights; the tower's attention is bidirectional, as in the published model."""
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
    """Sets initial weights that keep the size of states near one, with larger pixels and smooth positions.

    Queries and keys of a layer start as the same rotation of the states. So a patch first attends to near and similar
    patches, which saves many steps of training from scratch.
    """
    for name, parameter in tower.named_parameters():
        if name.endswith("position_embedding.weight"):
            parameter.data.copy_(0.5 * waves(2 * GRID, parameter.shape[1]))
        elif name.endswith("q_proj.weight"):
            nn.init.orthogonal_(parameter, gain=QUERY_GAIN)
        elif parameter.dim() > 1:
            gain = 2.0 if name.endswith("patch_embedding.weight") else 1.0
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)
        else:
            nn.init.constant_(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    for layer in tower.encoder.layers:
        layer.self_attn.k_proj.weight.data.copy_(layer.self_attn.q_proj.weight)


def waves(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column [side * side, width]; wavelengths from the whole picture to four patches."""
    frequencies = 2 * math.pi * torch.logspace(0, math.log2(side / 4), width // 4, base=2) / side
    angles = torch.arange(side)[:, None] * frequencies
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = along[:, None].expand(-1, side, -1), along[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def add_lora(network: Network) -> None:
    """Adds a new LoRA to the decoder's linear layers and switches it on."""
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=LORA_TARGETS)
    inject_adapter_in_model(config, network.model, "vision")


def pooled_features(network: Network, pixels: Tensor) -> Tensor:
    """Features of crops [pictures, 3, 448, 448] from the tower, pooled 2 x 2: float32 [pictures, 256, width]."""
    mask = torch.ones(len(pixels), 2 * GRID, 2 * GRID, dtype=torch.bool)
    features = encode_crops(network.model, pixels, mask)
    squares = features.view(len(pixels), 2 * GRID, 2 * GRID, -1).permute(0, 3, 1, 2)
    return functional.avg_pool2d(squares, 2).flatten(2).transpose(1, 2)


def window_features(network: Network, pixels: Tensor, corners: Tensor) -> Tensor:
    """Features of windows [windows, 3, side, side] from the tower, pooled 2 x 2: float32 [windows, tokens, width].

    `corners` [windows, 2] are row and column of each window's first patch.
    """
    tower: Any = network.embed.img_processor
    patches = tower.embeddings.patch_embedding(pixels)
    side = patches.shape[-1]
    rows, columns = (corners[:, axis, None] + torch.arange(side) for axis in (0, 1))
    positions = (rows[:, :, None] * 2 * GRID + columns[:, None, :]).flatten(1)
    states = patches.flatten(2).transpose(1, 2) + tower.embeddings.position_embedding(positions)
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
    """Embeddings [..., width] of single tower features or separators."""
    return network.embed.img_projection_down(functional.gelu(network.embed.img_projection_up(features)))


def decode(network: Network, embeddings: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
    """States after the final norm; `allowed` [1 or batch, 1, tokens, tokens] is the attention mask."""
    return network.model.model(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=allowed, use_cache=False
    ).last_hidden_state


def shared_prefix(prefix: int, questions: int, length: int) -> tuple[Tensor, Tensor]:
    """Positions [1, tokens] and mask of `questions` questions of `length` tokens after one prefix.

    No question attends to another.
    """
    rows = torch.arange(questions * length) // length
    positions = torch.cat([torch.arange(prefix), prefix + torch.arange(questions * length) % length])
    owner = torch.cat([torch.full((prefix,), -1), rows])
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    allowed = causal & ((owner[None, :] == -1) | (owner[:, None] == owner[None, :]))
    return positions[None], allowed[None, None]


def answer_loss(network: Network, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the answer tokens, and whether the whole answer of each row is right [rows]."""
    kept = targets != IGNORED
    logits = network.table.logits(states[kept])
    loss = functional.cross_entropy(logits, targets[kept])
    wrong = torch.zeros_like(targets, dtype=torch.bool)
    wrong[kept] = logits.argmax(dim=-1) != targets[kept]
    return loss, ~wrong.any(dim=-1)
