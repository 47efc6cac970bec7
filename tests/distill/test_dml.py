"""Mutual distillation against its formula, and two networks that learn together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pqk_ext.distill.dml import dml


def _logits(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(count)]


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_each_learns_from_the_mean_over_the_others(count: int, temperature: float) -> None:
    logits = _logits(count)
    probabilities = [(one / temperature).softmax(1).detach() for one in logits]
    for k, loss in enumerate(dml(logits, temperature)):
        divergences = [
            (probabilities[m] * (probabilities[m].log() - probabilities[k].log())).sum(1).mean()
            for m in range(count)
            if m != k
        ]
        expected = temperature**2 * sum(divergences) / (count - 1)
        torch.testing.assert_close(loss.detach(), expected)


def test_a_loss_moves_its_own_network_only() -> None:
    logits = _logits(3)
    dml(logits)[1].backward()
    assert [one.grad is not None for one in logits] == [False, True, False]
    # At T = 1: the difference of the probabilities, mean over the others and the batch.
    p = [one.softmax(1).detach() for one in logits]
    assert logits[1].grad is not None
    torch.testing.assert_close(logits[1].grad, (p[1] - (p[0] + p[2]) / 2) / 6)


def test_two_networks_come_to_agree() -> None:
    torch.manual_seed(1)
    x = torch.randn(64, 8)
    networks = [nn.Linear(8, 4) for _ in range(2)]
    optimizer = torch.optim.SGD([p for network in networks for p in network.parameters()], lr=0.5)

    def distance() -> float:
        a, b = (network(x).log_softmax(1) for network in networks)
        return float(F.kl_div(a, b, reduction="batchmean", log_target=True).detach())

    before = distance()
    for _ in range(50):
        loss = torch.stack(dml([network(x) for network in networks])).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distance() < 0.1 * before


def test_bad_arguments() -> None:
    a, b = _logits(2)
    with pytest.raises(ValueError, match="logits: expected those of 2 networks or more, got 1"):
        dml([a])
    with pytest.raises(ValueError, match="teacher_logits: expected the student's shape"):
        dml([a, b[:, :3]])
    with pytest.raises(ValueError, match="temperature"):
        dml([a, b], 0.0)
