"""Published weights: they load, reproduce the published accuracies, and damaged archives are refused."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pqk_ext import data, models
from pqk_ext.errors import DataError
from pqk_ext.models.pretrained import load_akamaster, load_arm_kws, load_mlperf_tiny

AKAMASTER_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
AKAMASTER_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def correct(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    model.eval()
    with torch.no_grad():
        return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(250), y.split(250), strict=True))


def test_embedded_ds_cnn_reproduces_its_accuracy() -> None:
    x, y = data.keyword_spotting("all").tensors
    assert correct(models.create("ds_cnn", pretrained=True), x, y) == 4507  # of 4,890: 92.17 %


def test_embedded_ds_cnn_needs_its_classes() -> None:
    with pytest.raises(ValueError, match="num_classes: the pretrained DS-CNN has 12, got 10"):
        models.create("ds_cnn", pretrained=True, num_classes=10)


def test_ds_cnn_archive_equals_embedded_weights(data_dir: Path) -> None:
    loaded = load_mlperf_tiny(models.create("ds_cnn"), data_dir / "mlperf_tiny_weights.npz.xz").state_dict()
    embedded = models.create("ds_cnn", pretrained=True).state_dict()
    assert all(torch.equal(loaded[name], embedded[name]) for name in embedded)


# Correct answers among the first 2,000 test images, measured with this code; all 10,000: see the long test.
def test_resnet8_mlperf_accuracy(data_dir: Path, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = cifar10_test
    model = load_mlperf_tiny(models.create("resnet8_mlperf"), data_dir / "mlperf_tiny_weights.npz.xz")
    assert abs(correct(model, x[:2000], y[:2000]) - 1758) <= 1  # a tie may fall otherwise on another CPU


def test_resnet20_accuracy(data_dir: Path, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = cifar10_test
    model = load_akamaster(models.create("resnet20"), data_dir / "resnet_cifar10_akamaster.npz.xz")
    assert abs(correct(model, (x[:2000] / 255 - AKAMASTER_MEAN) / AKAMASTER_STD, y[:2000]) - 1833) <= 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "load", "archive", "published"),
    [
        ("resnet8_mlperf", load_mlperf_tiny, "mlperf_tiny_weights.npz.xz", 8719),
        ("resnet20", load_akamaster, "resnet_cifar10_akamaster.npz.xz", 9173),
        ("resnet56", load_akamaster, "resnet_cifar10_akamaster.npz.xz", 9339),
    ],
)
def test_accuracy_on_the_whole_test_set(
    name: str,
    load: Callable[[nn.Module, Path], nn.Module],
    archive: str,
    published: int,
    data_dir: Path,
    cifar10_test: tuple[torch.Tensor, torch.Tensor],
) -> None:
    x, y = cifar10_test
    if load is load_akamaster:
        x = (x / 255 - AKAMASTER_MEAN) / AKAMASTER_STD
    assert abs(correct(load(models.create(name), data_dir / archive), x, y) - published) <= 2


@pytest.mark.parametrize("name", ["ds_cnn_s", "ds_cnn_m", "ds_cnn_l"])
def test_arm_weights_fill_the_model(name: str, data_dir: Path) -> None:
    model = models.create(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_arm_kws(model, data_dir / "arm_kws_weights.npz.xz") is model
    for key, value in model.state_dict().items():
        # The trained networks have no batch-norm scale: it stays one.
        fixed = key.endswith("num_batches_tracked") or (".weight" in key and "bn" in key)
        assert torch.equal(before[key], value) == fixed, key


def archive_of(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=0) if path.suffix == ".xz" else buffer.getvalue())
    return path


def resnet20_arrays() -> dict[str, np.ndarray]:
    state = models.create("resnet20").state_dict()
    return {f"resnet20/{k}": v.numpy() for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", ["weights.npz", "weights.npz.xz"])
def test_round_trip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    arrays = resnet20_arrays()
    model = load_akamaster(models.create("resnet20"), archive_of(tmp_path / name, arrays))
    assert all(np.array_equal(model.state_dict()[k.removeprefix("resnet20/")].numpy(), v) for k, v in arrays.items())


def test_bad_archives_are_refused(tmp_path: Path) -> None:
    model = models.create("resnet20")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    arrays = resnet20_arrays()

    with pytest.raises(DataError, match=r"missing.npz: expected a readable archive"):
        load_akamaster(model, tmp_path / "missing.npz")

    whole = archive_of(tmp_path / "whole.npz.xz", arrays).read_bytes()
    (tmp_path / "cut.npz.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"cut.npz.xz: expected a whole .npz or .npz.xz archive, got \d+ bytes"):
        load_akamaster(model, tmp_path / "cut.npz.xz")

    lacking = {name: array for name, array in arrays.items() if name != "resnet20/bn1.bias"}
    with pytest.raises(DataError, match=r"got 'bn1\.bias' in the model only"):
        load_akamaster(model, archive_of(tmp_path / "lacking.npz", lacking))

    with pytest.raises(DataError, match=r"expected linear.bias of shape \(10,\), got \(9,\)"):
        load_akamaster(
            model, archive_of(tmp_path / "shape.npz", arrays | {"resnet20/linear.bias": np.zeros(9, np.float32)})
        )

    with pytest.raises(DataError, match=r"expected arrays named resnet32/..., got only resnet20"):
        load_akamaster(models.create("resnet32"), archive_of(tmp_path / "depth.npz", arrays))

    with pytest.raises(DataError, match="expected an array named 'kws_dscnn/layer00/kernel'"):
        load_mlperf_tiny(models.create("ds_cnn"), archive_of(tmp_path / "other.npz", arrays))

    objects = np.array([{"a": 1}], dtype=object)
    with pytest.raises(DataError, match="allow_pickle=False"):
        load_akamaster(model, archive_of(tmp_path / "pickle.npz", {"resnet20/conv1.weight": objects}))

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_wrong_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model: expected resnet8_mlperf or ds_cnn, got VGG"):
        load_mlperf_tiny(models.create("vgg6"), tmp_path)
    with pytest.raises(ValueError, match="model: expected a CIFAR ResNet, got DSCNN"):
        load_akamaster(models.create("ds_cnn"), tmp_path)
    with pytest.raises(ValueError, match="model: expected ds_cnn_s, ds_cnn_m or ds_cnn_l, got VGG"):
        load_arm_kws(models.create("vgg6"), tmp_path)
