"""The experiment behind ``pqk demo``: a trained keyword-spotting network, compressed on data inside the package.

MLPerf Tiny's DS-CNN is trained on by the embedded clips (folds 0-2) in three arms that differ in one thing each:

* ``float``: the network as it is, fine-tuned;
* ``prune_quantize``: pruned and quantized, as many steps (the control of the method);
* ``pqk``: the same, and in its second half taught by its own pruned-away weights.

All arms have the same number of optimizer steps, learning rates, batches and augmentation. The settings in
:class:`Recipe` were chosen for the ``pqk`` arm on the validation fold (``tools/tune_demo.py``, one seed each); the
other arms take them over untuned. Differences of a point are within the noise of the test fold's 980 clips.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pqk_ext import models, runtime
from pqk_ext.config import PQKConfig
from pqk_ext.data import keyword_spotting
from pqk_ext.data.augment import shift_and_noise
from pqk_ext.data.embedded import Split
from pqk_ext.deploy import compare, export, quantize_post_training
from pqk_ext.preparation import PreparedModel, prepare
from pqk_ext.runtime import format
from pqk_ext.timing import interleaved

__all__ = ["ARMS", "FILES", "Recipe", "accuracy", "load_split", "measure", "train"]

ARMS = ("float", "prune_quantize", "pqk")
FILES = ("int8", *ARMS[1:])  # the float arm is also quantized after its training
_ROUNDS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings that all arms share.

    Attributes:
        sparsity: share of the prunable weights that is zero at the end (compressed arms).
        steps: optimizer steps of each arm.
        batch_size: clips a step.
        lr: learning rate of AdamW at its highest; it falls to 0 along half a cosine.
        weight_decay: of the weights.
        warmup: share of all steps in which the learning rate rises to ``lr``.
        shift: each clip is moved in time by up to this many of its 49 frames, edge frames repeated.
        noise: standard deviation of the noise on each coefficient, as a share of that coefficient's own.
        phase1: share of the steps in which the compressed arms are pruned.
        prune_depthwise: prune the depthwise convolutions too, which hold 2,304 of the 21,248 convolution weights.
        temperature: of the distillation loss.
        kd_weight: of the distillation loss.
    """

    sparsity: float = 0.8
    steps: int = 920
    batch_size: int = 32
    lr: float = 0.002
    weight_decay: float = 1e-4
    warmup: float = 0.05
    shift: int = 4
    noise: float = 0.1
    phase1: float = 0.5
    prune_depthwise: bool = False
    temperature: float = 4.0
    kd_weight: float = 3.0

    def config(self, *, teacher: bool) -> PQKConfig:
        """Settings of the compressed arms, which differ in ``teacher`` alone."""
        return PQKConfig(
            sparsity=self.sparsity,
            total_steps=self.steps,
            mask_update_interval=4,
            ranking="per_layer",
            prune_depthwise=self.prune_depthwise,
            phase1_fraction=self.phase1,
            temperature=self.temperature,
            kd_weight=self.kd_weight,
            teacher=teacher,
        )

    def lr_factor(self, step: int) -> float:
        """Multiple of ``lr`` at ``step``."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * self.steps))
        return rise * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def load_split(split: Split) -> tuple[Tensor, Tensor]:
    """Clips ``(N, 1, 49, 10)`` and labels ``(N,)`` of ``"train"``, ``"validation"`` or ``"test"``."""
    x, y = keyword_spotting(split).tensors
    return x, y


def batches(x: Tensor, y: Tensor, recipe: Recipe, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The augmented batches of a run, a function of ``recipe`` and ``seed`` alone: every arm sees the same."""
    generator = torch.Generator().manual_seed(seed)
    spread = recipe.noise * x.std(dim=(0, 1, 2), keepdim=True)
    size = min(recipe.batch_size, len(x))
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = torch.randperm(len(x), generator=generator)
        chosen, order = order[:size], order[size:]
        yield shift_and_noise(x[chosen], generator, shift=recipe.shift, spread=spread), y[chosen]


def train(
    arm: str,
    recipe: Recipe,
    seed: int,
    data: tuple[Tensor, Tensor],
    on_step: Callable[[], None] = lambda: None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Trains one arm from the trained DS-CNN.

    Args:
        arm: one of :data:`ARMS`.
        recipe: settings.
        seed: of batches, augmentation and dropout.
        data: training clips and labels.
        on_step: called after each optimizer step.
        device: where to train. Batches are made on the CPU, and so the same everywhere.

    Returns:
        The model in evaluation mode: a float network (``"float"``), or a prepared one, ready for export.

    Raises:
        ValueError: no arm of that name.
    """
    if arm not in ARMS:
        raise ValueError(f"arm: expected one of {', '.join(ARMS)}, got {arm!r}")
    model: nn.Module = models.create("ds_cnn", pretrained=True)
    _switch_dropout_off(model.to(device))
    controller = None
    groups = [{"params": list(model.parameters()), "lr": recipe.lr, "weight_decay": recipe.weight_decay}]
    if arm != "float":
        prepared = prepare(model, recipe.config(teacher=arm == "pqk"), example_inputs=data[0][:1].to(device))
        model, controller = prepared, prepared.pqk
        groups = controller.parameter_groups(lr=recipe.lr, weight_decay=recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    rates = [group["lr"] for group in optimizer.param_groups]
    torch.manual_seed(seed)
    model.train()
    for step, (x, y) in enumerate(batches(*data, recipe, seed)):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * recipe.lr_factor(step)
        x, y = x.to(device), y.to(device)
        loss = F.cross_entropy(model(x), y) if controller is None else controller.loss(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if controller is not None:
            controller.step()
        on_step()
    return model.to("cpu").eval()


def _switch_dropout_off(model: nn.Module) -> None:
    """A network of a fifth of its weights has none to spare; in a short run dropout costs every arm accuracy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@torch.no_grad()
def accuracy(model: nn.Module, data: tuple[Tensor, Tensor], batch_size: int = 128) -> float:
    """Share of the clips that the model classifies correctly, in [0, 1]."""
    pairs = zip(data[0].split(batch_size), data[1].split(batch_size), strict=True)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in pairs)
    return right / len(data[0])


def measure(
    recipe: Recipe,
    seeds: Iterable[int],
    folder: Path,
    on_step: Callable[[str, int], None] = lambda arm, seed: None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Trains all arms for every seed, writes the files, runs them without torch and measures.

    Args:
        recipe: settings of the arms.
        seeds: accuracies are means over them; the first one's files are measured and kept.
        folder: takes the files ``int8.pqk``, ``prune_quantize.pqk`` and ``pqk.pqk`` of the first seed, ``-N`` for
            the others.
        on_step: called with arm and seed after each optimizer step.
        device: where to train; everything else is measured on the CPU.

    Returns:
        What ``pqk demo --json`` writes, without ``seconds``. Accuracies are those of the integer networks, except
        the float arm's; all are of the test fold.
    """
    train_data, test = load_split("train"), load_split("test")
    runs: list[dict[str, Any]] = []
    networks: dict[str, nn.Module | Path] = {}
    for seed in seeds:
        for arm in ARMS:
            model = train(arm, recipe, seed, train_data, lambda arm=arm, seed=seed: on_step(arm, seed), device)  # type: ignore[misc]
            if arm == "float":
                runs.append({"arm": arm, "seed": seed, "accuracy": accuracy(model, test)})
                networks.setdefault(arm, model)
                name, sample = "int8", train_data[0][:: max(1, len(train_data[0]) // 512)]
                model = quantize_post_training(model, example_inputs=sample[:1], calibration=sample)
            else:
                name = arm
            path = folder / (f"{name}.pqk" if not runs or seed == runs[0]["seed"] else f"{name}-{seed}.pqk")
            runs.append({"arm": name, "seed": seed} | _deploy(model, path, test))
            networks.setdefault(name, path)
    sizes = _reference_bytes()
    latencies = _latencies({name: networks[name] for name in ("float", *FILES)}, test[0][:1])
    arms = {name: _summary([run for run in runs if run["arm"] == name], latencies[name]) for name in latencies}
    arms["float"] |= {"bytes": sizes["float32"], "sparsity": 0.0, "zeros": 0.0}
    compared = [run for run in runs if "samples" in run]
    return {
        "arms": arms,
        "parity": {key: sum(run[key] for run in compared) for key in ("samples", "different")},
        "sparsity": recipe.sparsity,
        "steps": recipe.steps,
        "seeds": len({run["seed"] for run in runs}),
        "start_accuracy": accuracy(models.create("ds_cnn", pretrained=True).eval(), test),
        "reference_bytes": sizes,
        "runs": runs,
    }


def _deploy(model: nn.Module, path: Path, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Writes one integer network, runs the file without torch, and compares all ways to compute it bit for bit."""
    assert isinstance(model, PreparedModel)
    export(model, path)
    logits = run_without_torch(path, test[0].numpy())
    with torch.no_grad():
        own = model(test[0]).numpy()
    other_process = (logits.view(np.int32) != own.view(np.int32)).any(1)
    parity = compare(model, path, test[0])
    return {
        "accuracy": float((logits.argmax(1) == test[1].numpy()).mean()),
        "bytes": path.stat().st_size,
        "sparsity": model.pqk.sparsity,
        "zeros": _zeros(path),
        "samples": parity.samples,
        "different": max(parity.different, int(other_process.sum())),
    }


def _zeros(path: Path) -> float:
    """Share of zero codes among all weights of a file, pruned or not."""
    weights = format.inspect(path).weights
    return 1 - sum(t.nonzeros for t in weights) / sum(t.count for t in weights)


def run_without_torch(path: Path, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The file's outputs for ``x``, computed by ``pqk run`` in a new process in which torch cannot be imported."""
    program = "import sys; sys.modules['torch'] = None; from pqk_ext.cli import main; sys.exit(main())"
    with tempfile.TemporaryDirectory(prefix="pqk-") as folder:
        source, target = Path(folder) / "x.npy", Path(folder) / "y.npy"
        np.save(source, x)
        # -P: not the package of the current folder, which may be a source tree without built libraries.
        command = [sys.executable, "-P", "-c", program, "run", str(path), str(source), "-o", str(target)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeError(f"running {path} without torch failed ({result.returncode}): {result.stderr.strip()}")
        logits: NDArray[np.float32] = np.load(target)
    return logits


def _reference_bytes() -> dict[str, int]:
    """Sizes of the network's parameters and statistics without this package: float32, gzip'd, one byte each."""
    model = models.create("ds_cnn", pretrained=True)
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    data = b"".join(t.numpy().tobytes() for t in tensors)
    return {"float32": len(data), "float32_gzip": len(gzip.compress(data, 9)), "int8": len(data) // 4}


def _latencies(networks: Mapping[str, nn.Module | Path], x: Tensor) -> dict[str, float]:
    """Microseconds a clip on one thread, medians over rounds in which the networks take turns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = [_call(network, x) for network in networks.values()]
        with torch.inference_mode():
            seconds = interleaved(calls, _ROUNDS)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e6 * statistics.median(times) for name, times in zip(networks, seconds, strict=True)}


def _call(network: nn.Module | Path, x: Tensor) -> Callable[[], object]:
    if isinstance(network, nn.Module):
        return lambda: network(x)
    loaded, array = runtime.load(network), x.numpy()
    out = loaded(array)
    return lambda: loaded.run(array, out)


def _summary(runs: list[dict[str, Any]], latency: float) -> dict[str, Any]:
    summary = {"accuracy": statistics.fmean(run["accuracy"] for run in runs), "latency_us": latency}
    if "bytes" in runs[0]:
        summary |= {"bytes": max(run["bytes"] for run in runs)} | {key: runs[0][key] for key in ("sparsity", "zeros")}
    return summary
