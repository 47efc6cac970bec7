"""Devices that users name: what is refused, and that nothing else is used instead."""

from __future__ import annotations

import pytest
import torch

from pqk_ext.device import repeatable_kernels, usable_device
from pqk_ext.methods import load_recipe
from pqk_ext.methods.recipe import Recipe

without_cuda = pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "", "cuda:x"])
def test_other_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="device: expected 'cpu', 'cuda' or 'cuda:N', got"):
        usable_device(device)


@without_cuda
def test_cuda_without_cuda_names_the_cause() -> None:
    with pytest.raises(RuntimeError, match=r"device: cuda:1 cannot be used: torch .* is built without CUDA"):
        usable_device("cuda:1")


def test_no_gpu_names_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nMore words.")

    monkeypatch.setattr("torch.cuda.init", refuse)
    with pytest.raises(RuntimeError, match=r"cannot be used: The NVIDIA driver .* \(found version 11040\)\.$"):
        usable_device("cuda")


def test_a_build_without_kernels_names_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("pqk_ext._core.build_config", lambda: {"cuda_ops": False})
    with pytest.raises(RuntimeError, match="this build of pqk_ext has no CUDA ops; rebuild it where nvcc is found"):
        usable_device("cuda")


def test_kernels_repeat_on_a_gpu_and_the_choice_is_put_back() -> None:
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    with repeatable_kernels(torch.device("cpu")):
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
    with repeatable_kernels(torch.device("cuda", 0)):
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before


def test_recipes_do_not_state_what_is_off() -> None:
    """Results and runs of before these fields stay what they are."""
    plain, fast = load_recipe("pqk"), load_recipe("pqk", {"training.autocast": "bf16", "training.cuda_graphs": True})
    assert not {"autocast", "compile", "cuda_graphs"} & plain.to_dict()["training"].keys()
    assert fast.to_dict()["training"]["autocast"] == "bf16"
    for recipe in (plain, fast):
        assert Recipe.from_dict(recipe.to_dict()) == recipe
