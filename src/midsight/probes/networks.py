"""The paper's network as a probe: 512, 256, 128. The only module here that uses torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

HIDDEN = (512, 256, 128)
DROPOUT = 0.3
LEARNING_RATE = 1e-3
MOST_EPOCHS, PATIENCE, BATCH = 50, 5, 256
HALP_EPOCHS, HALP_BATCH = 50, 32


def train_network(
    features: np.ndarray, y: np.ndarray, validation: tuple[np.ndarray, np.ndarray], seed: int
) -> "torch.nn.Module":
    """The network, at the epoch with the lowest loss on the validation samples.

    Args:
        features: float32 [n, width], scaled.
        y: 0 or 1, float32 [n].
        validation: Features and labels of other groups; training stops when they have not improved for a while.
        seed: Of weights, order and dropout.

    Returns:
        The trained network, in evaluation mode.
    """
    import torch

    network, optimiser = _new_network(features.shape[1], seed)
    held, wanted = (torch.from_numpy(part) for part in validation)
    best, best_state, waited = float("inf"), network.state_dict(), 0
    for _ in range(MOST_EPOCHS):
        _one_epoch(network, optimiser, features, y, BATCH)
        network.eval()
        with torch.no_grad():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(network(held)[:, 0], wanted).item()
        if loss < best:
            best, waited = loss, 0
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
        elif (waited := waited + 1) >= PATIENCE:
            break
    network.load_state_dict(best_state)
    return network.eval()


def train_as_halp(features: np.ndarray, y: np.ndarray, seed: int) -> "torch.nn.Module":
    """The network after 50 epochs in batches of 32, without scaling, validation or early stopping, as the paper's."""
    network, optimiser = _new_network(features.shape[1], seed)
    for _ in range(HALP_EPOCHS):
        _one_epoch(network, optimiser, features, y, HALP_BATCH)
    return network.eval()


def network_scores(network: "torch.nn.Module", features: np.ndarray) -> np.ndarray:
    """Logits, float32 [n]."""
    import torch

    with torch.no_grad():
        return np.concatenate([network(rows)[:, 0].numpy() for rows in torch.from_numpy(features).split(4096)])


def _new_network(width: int, seed: int) -> tuple[Any, Any]:
    import torch
    from torch import nn

    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((width, *HIDDEN), HIDDEN, strict=False):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(DROPOUT)]
    network = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))
    return network, torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)


def _one_epoch(network: Any, optimiser: Any, features: np.ndarray, y: np.ndarray, batch: int) -> None:
    import torch

    network.train()
    inputs, labels = torch.from_numpy(features), torch.from_numpy(y)
    for rows in torch.randperm(len(y)).split(batch):
        if len(rows) > 1:  # batch normalisation needs two
            optimiser.zero_grad()
            logits = network(inputs[rows])[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[rows]).backward()
            optimiser.step()
