"""Networks with shared weights and lively outputs, and inputs for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pqk_ext import models, share_weights
from pqk_ext.models.densenet import DenseNet
from pqk_ext.models.mobilenet import MobileNetV2

from ..networks import enliven


class SmallMobileNet(MobileNetV2):
    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 2, 2))


OWN = {
    "densenet": lambda: DenseNet(12, (3, 4), "cifar", 10),
    "mobilenet": lambda: SmallMobileNet("cifar", 10),
}
NETWORKS = ("resnet8", "ds_cnn", "resnet20", "res8", *OWN)


def shared(name: str, sparsity: float) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, *((3, 32, 32) if name in OWN else models.input_shape(name)))
    model = share_weights(OWN[name]() if name in OWN else models.create(name), 32, sparsity=sparsity)
    return enliven(model, x), x


class EveryOperator(nn.Module):
    """What the zoo does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, stride=2, padding="valid")
        self.grouped = nn.Conv2d(12, 12, (3, 1), padding="same", groups=3, dilation=(2, 1), bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.branch = nn.Conv2d(12, 5, 1)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.average = nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)
        self.norm2 = nn.BatchNorm2d(17)
        self.fc = nn.Linear(17 * 6, 9)
        self.drop = nn.Dropout()
        self.norm3 = nn.BatchNorm1d(9)
        self.fc2 = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.stem(nn.functional.pad(x, (1, 0, 2, 1))))
        x = nn.functional.relu6(self.norm(self.grouped(x)) + x)
        x = torch.relu(nn.functional.pad(x, (1, 1, 1, 1)) + nn.functional.pad(x[:, ::1], (1, 1, 1, 1)))[:, :, 1:-1, 1:]
        x = torch.cat([x, torch.sigmoid(nn.functional.hardswish(self.branch(x)))], 1)
        x = torch.relu(self.norm2(self.pool(x)))
        x = torch.relu(nn.functional.adaptive_avg_pool2d(self.average(x), (3, 2)))
        x = torch.tanh(nn.functional.hardsigmoid(self.norm3(self.fc(x.flatten(1)))))
        return torch.softmax(self.fc2(self.drop(x)), dim=1)


def every_operator() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 27, 23)
    return enliven(share_weights(EveryOperator(), 16, sparsity=0.3), x), x
