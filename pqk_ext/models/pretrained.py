"""Published trained weights, brought into the models of this zoo.

The archives are `.npz` files, plain or inside `.xz`, that hold the arrays under the names of their origin:

* MLPerf Tiny (TensorFlow, Apache-2.0): `ic_resnet8/...` and `kws_dscnn/...`;
* `pytorch_resnet_cifar10` (PyTorch, BSD-2-Clause): `resnet20/...` and `resnet56/...`;
* Hello Edge (TensorFlow, Apache-2.0): `DS_CNN_S/MobileNet/...`, `DS_CNN_M/...`, `DS_CNN_L/...`.

No archive is ever unpickled. TensorFlow keeps convolutions as (height, width, in, out), depthwise ones as (height,
width, channels, 1) and linear layers as (in, out); all are transposed to PyTorch's order, the values unchanged.
"""

from __future__ import annotations

import io
import lzma
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import nn

from pqk_ext.data.embedded import asset_bytes
from pqk_ext.errors import DataError
from pqk_ext.models.dscnn import DSCNN
from pqk_ext.models.resnet import ResNet
from pqk_ext.models.resnet_mlperf import MLPerfResNet8

Arrays = Mapping[str, npt.NDArray[Any]]
State = dict[str, npt.NDArray[Any]]


def load_mlperf_tiny(model: nn.Module, path: str | Path) -> nn.Module:
    """Load MLPerf Tiny's trained weights into `resnet8_mlperf` or `ds_cnn`, in place.

    Args:
        model: `create("resnet8_mlperf")` (87.19 % on the CIFAR-10 test images, pixels 0..255) or `create("ds_cnn")`
            (92.17 % on `keyword_spotting("all")`).
        path: The archive.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is neither of the two.
        DataError: The archive is missing, damaged, lacks an array or has one of another shape.
    """
    if isinstance(model, MLPerfResNet8):
        convert = mlperf_resnet8_state
    elif isinstance(model, DSCNN) and _size(model) == (64, 4):
        convert = mlperf_ds_cnn_state
    else:
        raise ValueError(f"model: expected resnet8_mlperf or ds_cnn, got {type(model).__name__}")
    arrays = _read(Path(path))
    return _assign(model, _converted(convert, arrays, Path(path)), Path(path))


def load_akamaster(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the trained weights of `pytorch_resnet_cifar10` into `resnet20` or `resnet56`, in place.

    They reach 91.73 % and 93.39 % on the CIFAR-10 test images, given pixels in 0..1 less (0.485, 0.456, 0.406),
    divided by (0.229, 0.224, 0.225).

    Args:
        model: `create("resnet20")` or `create("resnet56")`, 10 classes.
        path: The archive.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is not a CIFAR ResNet.
        DataError: The archive is missing, damaged, has no weights for that depth, or an array of another shape.
    """
    if not isinstance(model, ResNet):
        raise ValueError(f"model: expected a CIFAR ResNet, got {type(model).__name__}")
    path = Path(path)
    prefix = f"resnet{6 * len(model.layer1) + 2}/"
    arrays = _read(path)
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    if not state:
        known = sorted({name.split("/")[0] for name in arrays})
        raise DataError(path, expected=f"arrays named {prefix}...", got=f"only {', '.join(known)}")
    return _assign(model, state, path)


def load_arm_kws(model: nn.Module, path: str | Path) -> nn.Module:
    """Load Hello Edge's trained weights into `ds_cnn_s`, `ds_cnn_m` or `ds_cnn_l`, in place.

    They expect `pqk_ext.data.features.mfcc_hello_edge` and give 12 logits in the order of `HELLO_EDGE_KEYWORDS`.

    Args:
        model: `create("ds_cnn_s")`, `create("ds_cnn_m")` or `create("ds_cnn_l")`.
        path: The archive.

    Returns:
        `model`.

    Raises:
        ValueError: `model` is none of the three.
        DataError: The archive is missing, damaged, lacks an array or has one of another shape.
    """
    prefixes = {(64, 4): "DS_CNN_S", (172, 4): "DS_CNN_M", (276, 5): "DS_CNN_L"}
    if not isinstance(model, DSCNN) or _size(model) not in prefixes:
        raise ValueError(f"model: expected ds_cnn_s, ds_cnn_m or ds_cnn_l, got {type(model).__name__}")
    path = Path(path)
    prefix = f"{prefixes[_size(model)]}/MobileNet/"
    arrays = {name.removeprefix(prefix): a for name, a in _read(path).items() if name.startswith(prefix)}
    return _assign(model, _converted(_arm_ds_cnn_state, arrays, path), path)


def load_archive(model: nn.Module, path: str | Path) -> nn.Module:
    """Load the published weights of `model` from the archive of their origin, in place.

    Args:
        model: One of those that :func:`load_mlperf_tiny`, :func:`load_akamaster` or :func:`load_arm_kws` take.
        path: The archive.

    Returns:
        `model`.

    Raises:
        ValueError: No archive has weights for that network.
        DataError: The archive is missing, damaged, lacks an array or has one of another shape.
    """
    if isinstance(model, ResNet):
        return load_akamaster(model, path)
    if isinstance(model, MLPerfResNet8) or (isinstance(model, DSCNN) and _size(model) == (64, 4)):
        return load_mlperf_tiny(model, path)
    return load_arm_kws(model, path)


#: Labels of Hello Edge's models, in the order of their logits.
HELLO_EDGE_KEYWORDS = (
    "_silence_", "_unknown_", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
)  # fmt: skip


def load_embedded(model: nn.Module, name: str) -> nn.Module:
    """Load a `.safetensors` file of the package's own assets into `model`, in place; return `model`."""
    state = safetensors.torch.load(asset_bytes(name))
    return _assign(model, {key: tensor.numpy() for key, tensor in state.items()}, Path(name))


def mlperf_ds_cnn_state(arrays: Arrays) -> State:
    """Return the state of `ds_cnn` from MLPerf Tiny's arrays (`kws_dscnn/layer00` .. `layer18`)."""
    state: State = {}
    names = ["conv", "bn"]
    for i in range(4):
        names += [f"layers.{i}.{part}" for part in ("depthwise", "bn1", "pointwise", "bn2")]
    for number, name in enumerate([*names, "linear"]):
        layer = f"kws_dscnn/layer{number:02d}"
        if "bn" in name:
            state |= _batch_norm(arrays, layer, name)
        else:
            kernel = "depthwise_kernel" if name.endswith("depthwise") else "kernel"
            state |= _weight(arrays, f"{layer}/{kernel}", f"{layer}/bias", name)
    return state


def mlperf_resnet8_state(arrays: Arrays) -> State:
    """Return the state of `resnet8_mlperf` from MLPerf Tiny's arrays (`ic_resnet8/conv2d`, ...)."""
    convs = ["conv", "stage1.conv1", "stage1.conv2", "stage2.conv1", "stage2.conv2", "stage2.shortcut"]
    convs += ["stage3.conv1", "stage3.conv2", "stage3.shortcut"]
    norms = ["bn"] + [f"stage{stage}.bn{i}" for stage in (1, 2, 3) for i in (1, 2)]
    state = _weight(arrays, "ic_resnet8/dense/kernel", "ic_resnet8/dense/bias", "linear")
    for number, name in enumerate(convs):
        layer = "ic_resnet8/conv2d" + (f"_{number}" if number else "")
        state |= _weight(arrays, f"{layer}/kernel", f"{layer}/bias", name)
    for number, name in enumerate(norms):
        layer = "ic_resnet8/batch_normalization" + (f"_{number}" if number else "")
        state |= _batch_norm(arrays, layer, name)
    return state


def _arm_ds_cnn_state(arrays: Arrays) -> State:
    state = _weight(arrays, "conv_1/weights", "conv_1/biases", "conv")
    state |= _batch_norm(arrays, "conv_1/batch_norm", "bn", scale="Const")
    state |= _weight(arrays, "fc1/weights", "fc1/biases", "linear")
    for i in range(sum(name.endswith("depthwise_weights") for name in arrays)):
        source, target = f"conv_ds_{i + 1}", f"layers.{i}"
        depthwise, pointwise = f"{source}/depthwise_conv", f"{source}/pointwise_conv"
        state |= _weight(arrays, f"{depthwise}/depthwise_weights", f"{depthwise}/biases", f"{target}.depthwise")
        state |= _batch_norm(arrays, f"{source}/dw_batch_norm", f"{target}.bn1", scale="Const")
        state |= _weight(arrays, f"{pointwise}/weights", f"{pointwise}/biases", f"{target}.pointwise")
        state |= _batch_norm(arrays, f"{source}/pw_batch_norm", f"{target}.bn2", scale="Const")
    return state


def _weight(arrays: Arrays, kernel: str, bias: str, target: str) -> State:
    order = (1, 0) if arrays[kernel].ndim == 2 else (2, 3, 0, 1) if "depthwise" in kernel else (3, 2, 0, 1)
    return {f"{target}.weight": np.ascontiguousarray(arrays[kernel].transpose(order)), f"{target}.bias": arrays[bias]}


def _batch_norm(arrays: Arrays, source: str, target: str, scale: str = "gamma") -> State:
    return {
        f"{target}.weight": arrays[f"{source}/{scale}"],
        f"{target}.bias": arrays[f"{source}/beta"],
        f"{target}.running_mean": arrays[f"{source}/moving_mean"],
        f"{target}.running_var": arrays[f"{source}/moving_variance"],
    }


def _size(model: DSCNN) -> tuple[int, int]:
    return model.conv.out_channels, len(model.layers)


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(path, expected="a readable archive", got=str(error)) from error
    try:
        raw = lzma.decompress(content) if path.suffix == ".xz" else content
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            return dict(archive)
    except (lzma.LZMAError, EOFError, ValueError, zipfile.BadZipFile) as error:
        size = f"{len(content)} bytes that do not decode ({error})"
        raise DataError(path, expected="a whole .npz or .npz.xz archive", got=size) from error


def _converted(convert: Any, arrays: Arrays, path: Path) -> State:
    try:
        state: State = convert(arrays)
    except KeyError as error:
        raise DataError(path, expected=f"an array named {error.args[0]!r}", got="none of that name") from error
    return state


def _assign(model: nn.Module, state: State, path: Path) -> nn.Module:
    """Copy `state` into `model`: every parameter and running statistic, no other name, no other shape."""
    own = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name in own.keys() | state.keys():
        if name not in state or name not in own:
            holder = "the model" if name in own else "the archive"
            raise DataError(path, expected="the same arrays as the model", got=f"{name!r} in {holder} only")
        if tuple(own[name].shape) != state[name].shape:
            raise DataError(path, expected=f"{name} of shape {tuple(own[name].shape)}", got=f"{state[name].shape}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(torch.from_numpy(np.array(state[name])))
    return model
