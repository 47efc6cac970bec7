"""Time of a training step on a GPU: float and both phases of PQK, eagerly, in bfloat16, compiled and as a CUDA graph.

`python benchmarks/gpu/bench_step_cuda.py` writes `benchmarks/results/gpu/train_step.json` after each way. A step is all
that `pqk_ext.fit` does for a batch that lies on the GPU: loss, backward pass, optimizer, masks. `ratio` is the float
step's time / the way's own, over interleaved rounds; images a second are of batch 128.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import paired
import paired_cuda
import torch
from torch import Tensor, nn

import pqk_ext
from pqk_ext import build_info, models
from pqk_ext.training.optimizers import sgd
from pqk_ext.training.settings import Settings, cosine
from pqk_ext.training.step_loss import StepLoss
from pqk_ext.training.trainee import driver_of

STEM = "gpu/train_step"
SHAPES = {"resnet20": (3, 32, 32), "ds_cnn": (1, 49, 10)}
BATCH = 128
_STEPS = 1_000_000  # a schedule so long that no benchmark leaves its phase
WAYS: dict[str, dict[str, Any]] = {
    "eager": {},
    "bf16": {"autocast": "bf16"},
    "compiled": {"compile": True},
    "graph": {"cuda_graphs": True},
    "graph, bf16": {"cuda_graphs": True, "autocast": "bf16"},
}


def float_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = models.create(name, num_classes=10)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network.to("cuda")


def batch(name: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((BATCH, *SHAPES[name]), generator=generator)
    return x.to("cuda"), torch.randint(0, 10, (BATCH,), generator=generator).to("cuda")


def network_in_phase(name: str, phase: int) -> nn.Module:
    """0: float; 1: pruned and quantized; 2: taught by its own pruned weights."""
    if phase == 0:
        return float_network(name)
    config = pqk_ext.PQKConfig(sparsity=0.9, total_steps=_STEPS, warmup_fraction=0.0)
    model = pqk_ext.prepare(float_network(name), config, example_inputs=batch(name)[0][:1]).train()
    _go_to(model, config.phase1_steps - 1)
    model.pqk.step()
    if phase == 1:
        _go_to(model, config.ramp_end_step)
    return model


def _go_to(model: nn.Module, step: int) -> None:
    model.load_state_dict(model.state_dict() | {"pqk.step_count": torch.tensor(step)})


def step_of(name: str, phase: int, way: dict[str, Any]) -> Callable[[], None]:
    """A training step as `fit` does it."""
    x, y = batch(name)
    model = network_in_phase(name, phase).train()
    driver = driver_of(model)
    settings = Settings(
        config=getattr(driver, "config", None),
        total_steps=_STEPS,
        steps_per_epoch=351,
        batch_size=BATCH,
        lr=0.01,
        phase2_lr_factor=None,
        weight_decay=1e-4,
        momentum=0.9,
        optimizer=None,
        schedule=cosine,
        augment=None,
        seed=0,
        log_every=50,
        diagnose_every=0,
        **way,
    )
    optimizer = sgd(driver.parameter_groups(0.01, 1e-4), 0.9)
    step_loss = StepLoss(model, driver, settings)

    def step() -> None:
        loss = step_loss(x, y)
        step_loss.backward(loss)
        optimizer.step()
        driver.step()
        optimizer.zero_grad()

    for _ in range(6):  # a graph is recorded after some eager steps
        step()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["resnet20"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--ways", nargs="*", default=["eager", "graph", "bf16", "graph, bf16", "compiled"])
    options = parser.parse_args()
    for name in options.networks:
        baseline = step_of(name, 0, {})
        for way in options.ways:
            for phase in (0, 1, 2):
                key = f"{name}, {('float', 'PQK phase 1', 'PQK phase 2')[phase]}, {way}"
                try:
                    step = step_of(name, phase, WAYS[way])
                    result = paired_cuda.compare(key, step, baseline, rounds=8, seconds_a_round=0.1)
                except (RuntimeError, ValueError) as error:
                    print(f"NOT MEASURED: {key}: {error}", flush=True)
                    entry: dict[str, Any] = {"failed": str(error).splitlines()[0]}
                else:
                    print(result, flush=True)
                    entry = asdict(result) | {"images_a_second": BATCH / result.subject_us * 1e6}
                paired.merge_results(STEM, "rows", {key: entry}, **paired_cuda.gpu(), build=build_info())


if __name__ == "__main__":
    main()
