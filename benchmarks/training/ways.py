"""The ways to train a network that the benchmarks of this folder compare, each as one callable training step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pqk_ext
from pqk_ext import models

SHAPES = {"resnet20": (3, 32, 32), "ds_cnn": (1, 49, 10)}
TITLES = {"resnet20": "ResNet-20", "ds_cnn": "DS-CNN"}
BASELINE = "float, channels_last"
_STEPS = 1_000_000  # a schedule so long that no benchmark leaves its phase

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network and what it is trained on.

    Attributes:
        name: of the zoo.
        batch: images a step.
        sparsity: share of the prunable weights that PQK has set to zero.
    """

    name: str
    batch: int = 64
    sparsity: float = 0.9

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return models.create(self.name, num_classes=10).train()

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((self.batch, *SHAPES[self.name]), generator=generator)
        return x, torch.randint(0, 10, (self.batch,), generator=generator)


def _plain(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _channels_last(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    return model.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)


def plain_float(case: Case) -> Step:
    """torch, as a user writes it."""
    return _plain(case.network(), *case.data())


def float_channels_last(case: Case) -> Step:
    """torch in the memory format that is faster on CPUs."""
    x, y = case.data()
    return _plain(*_channels_last(case.network(), x), y)


def compiled_float(case: Case) -> Step:
    """The same through torch.compile; its first step takes a minute."""
    x, y = case.data()
    model, x = _channels_last(case.network(), x)
    return _plain(torch.compile(model), x, y)  # type: ignore[arg-type]


def fx_qat(case: Case) -> Step:
    """torch.ao's quantization-aware training on FX graphs, with its settings for x86."""
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    x, y = case.data()
    model, x = _channels_last(case.network(), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_qat_fx(model, get_default_qat_qconfig_mapping("x86"), (x,))
    return _plain(prepared, x, y)


def _pqk(case: Case, phase: int, **settings: object) -> Step:
    x, y = case.data()
    config = pqk_ext.PQKConfig(sparsity=case.sparsity, total_steps=_STEPS, warmup_fraction=0.0, **settings)
    model, x = _channels_last(pqk_ext.prepare(case.network(), config, example_inputs=x), x)
    optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.01), momentum=0.9)

    def step() -> None:
        model.pqk.loss(x, y).backward()
        optimizer.step()
        model.pqk.step()
        optimizer.zero_grad()

    # The step that ends phase 1 prunes to the end of the schedule.
    _go_to(model, config.phase1_steps - 1)
    step()
    if phase == 1:
        _go_to(model, config.ramp_end_step)
    return step


def _go_to(model: nn.Module, step: int) -> None:
    model.load_state_dict(model.state_dict() | {"pqk.step_count": torch.tensor(step)})


def pqk_phase_1(case: Case) -> Step:
    """PQK's pruning and quantization; masks are ranked anew as often as by default."""
    return _pqk(case, 1)


def pqk_phase_2(case: Case) -> Step:
    """PQK's distillation from the teacher inside."""
    return _pqk(case, 2)


WAYS: dict[str, Callable[[Case], Step]] = {
    "float": plain_float,
    BASELINE: float_channels_last,
    "float, torch.compile": compiled_float,
    "torch.ao FX QAT": fx_qat,
    "PQK phase 1": pqk_phase_1,
    "PQK phase 2": pqk_phase_2,
}
