"""`assert_sparsity`: holds where the zeros are, fails where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import pqk_ext
from pqk_ext.config import PQKConfig
from pqk_ext.preparation import PreparedModel, prepare

from .networks import SmallNet, batch


@pytest.fixture
def pruned() -> PreparedModel:
    torch.manual_seed(0)
    model = prepare(SmallNet(), PQKConfig(sparsity=0.75, total_steps=4), example_inputs=batch(0)[0])
    model.pqk._step = 4
    model.pqk.update_masks()
    return model.eval()


def test_prepared_model_and_its_file(pruned: PreparedModel, tmp_path: Path) -> None:
    pqk_ext.assert_sparsity(pruned, 0.75)
    with pytest.raises(AssertionError, match=r"sparsity is 0\.7\d+, expected 0\.9; layers: conv1 0\.\d+, conv2"):
        pqk_ext.assert_sparsity(pruned, 0.9)
    pqk_ext.export(pruned, tmp_path / "net.pqk")
    pqk_ext.assert_sparsity(tmp_path / "net.pqk", {"conv[12]": 0.4})
    with pytest.raises(AssertionError, match=r"sparsity of fc is 0\.0\d+, expected 0\.5"):
        pqk_ext.assert_sparsity(str(tmp_path / "net.pqk"), {"fc": 0.5})


def test_a_weight_that_leaks_through_the_mask_is_found(pruned: PreparedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruned.conv2, "student_weight", lambda: pruned.conv2.weight)
    with pytest.raises(AssertionError, match=r"conv2: \d+ weights under the mask are not 0"):
        pqk_ext.assert_sparsity(pruned, 0.1)


def test_plain_model() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    with torch.no_grad():
        net[0].weight[:5] = 0
    pqk_ext.assert_sparsity(net, 0.25)
    pqk_ext.assert_sparsity(net, {"0": 0.5})
    with pytest.raises(AssertionError, match=r"of 2 is 0\.0000, expected 0\.1; layers: 0 0\.500, 2 0\.000"):
        pqk_ext.assert_sparsity(net, {".*": 0.1})


@pytest.mark.parametrize(
    ("sparsity", "message"), [(1.5, "share in"), ({"0": -0.1}, "share in"), ({"x": 0.1}, "'x' matches no layer")]
)
def test_bad_arguments(sparsity: float | dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"sparsity: .*{message}"):
        pqk_ext.assert_sparsity(nn.Sequential(nn.Linear(2, 2)), sparsity)
