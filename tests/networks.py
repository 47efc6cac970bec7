"""Small networks and helpers that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SmallNet(nn.Module):
    """Convolutions with batch norm, a residual addition, pooling, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(self.dropout(torch.flatten(self.pool(x), 1)))


def batch(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """A learnable toy batch for :class:`SmallNet`: the class is the sign pattern of three channel means."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 5, (size,), generator=generator)
    x = torch.randn(size, 3, 8, 8, generator=generator)
    return x + (y[:, None] == torch.arange(3)).float()[:, :, None, None], y


def enliven(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Gives an untrained model batch norm statistics of real data, so that its outputs depend on its inputs."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    model.train()
    with torch.no_grad():
        model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
