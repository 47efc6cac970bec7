"""Networks whose files are weighed, made once and kept in a cache folder (`PQK_BENCH_CACHE`, `~/.cache/pqk_bench`).

`ds_cnn` is trained as `pqk demo` trains its arm `pqk`: pruned, quantized and distilled on the clips in the package.
`resnet20` (CIFAR-10) and `ds_cnn_l` (keywords) were trained elsewhere (`$PQK_DATA_DIR`), are pruned by magnitude and
quantized here without training: files have the size of networks so pruned, no accuracy is claimed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import torch

from pqk_ext import demo, models
from pqk_ext.config import PQKConfig
from pqk_ext.deploy import export, quantize_post_training
from pqk_ext.models import pretrained
from pqk_ext.runtime import Graph, format

SPARSITIES = (0.8, 0.9, 0.95)
BITS = (8, 4)
DATA_DIR = Path(os.environ.get("PQK_DATA_DIR", Path(__file__).parents[2].parent / "shared" / "data"))


# Trained elsewhere: file under PQK_DATA_DIR, how it is read, shape of an input.
PRETRAINED = {
    "resnet20": ("resnet_cifar10_akamaster.npz.xz", pretrained.load_akamaster, (3, 32, 32)),
    "ds_cnn_l": ("arm_kws_weights.npz.xz", pretrained.load_arm_kws, (1, 49, 10)),
}


def names() -> list[str]:
    """`network/zeros/bits`; networks that need `PQK_DATA_DIR` only where it is."""
    networks = ["ds_cnn", *(name for name, (file, *_) in PRETRAINED.items() if (DATA_DIR / file).exists())]
    return [f"{network}/{sparsity}/{bits}" for network in networks for sparsity in SPARSITIES for bits in BITS]


def load(name: str) -> Graph:
    """The network's integer graph, made now if it is not in the cache."""
    network, sparsity, bits = name.split("/")
    path = _folder() / f"{network}-{sparsity}-{bits}.pqk"
    if not path.exists():
        if network == "ds_cnn":
            _train(float(sparsity), int(bits), path)
        else:
            _prune(network, float(sparsity), int(bits), path)
    return format.read(path)


def _folder() -> Path:
    digest = hashlib.sha256(Path(__file__).read_bytes() + Path(demo.__file__).read_bytes()).hexdigest()[:12]
    path = Path(os.environ.get("PQK_BENCH_CACHE", "~/.cache/pqk_bench")).expanduser() / f"storage-{digest}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _train(sparsity: float, bits: int, path: Path) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Recipe(demo.Recipe):
        def config(self, *, teacher: bool) -> PQKConfig:
            return dataclasses.replace(super().config(teacher=teacher), weight_bits=bits)

    recipe = Recipe(sparsity=sparsity)
    export(demo.train("pqk", recipe, 0, demo.load_split("train")), path)


def _prune(network: str, sparsity: float, bits: int, path: Path) -> None:
    """The smallest weights of each layer but the first, the last and depthwise ones become 0."""
    file, read, shape = PRETRAINED[network]
    model = read(models.create(network), DATA_DIR / file)
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d) and module.groups == 1][1:]
    with torch.no_grad():
        for layer in layers:
            magnitudes = layer.weight.abs()
            limit = magnitudes.flatten().kthvalue(round(sparsity * magnitudes.numel())).values
            layer.weight[magnitudes <= limit] = 0
    calibration = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0))
    config = PQKConfig(sparsity=0.0, teacher=False, weight_bits=bits)
    export(quantize_post_training(model, example_inputs=calibration[:1], calibration=calibration, config=config), path)
