"""The agent: draws, memory, updates, what it learns, and its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from pqk_ext.methods._ddpg import Agent, AgentSettings, Baseline, truncated_normal

SETTINGS = AgentSettings(warmup=3, sigma=0.5, sigma_decay=0.9, capacity=10)


def test_draws_are_those_of_a_truncated_normal_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    for mean, sigma in ((0.5, 0.5), (0.9, 0.3), (0.05, 0.1)):
        values = torch.tensor([truncated_normal(mean, sigma, generator) for _ in range(2000)])
        assert 0 <= float(values.min()) <= float(values.max()) <= 1
        # Mean of a truncated normal distribution, from the density and the distribution at the edges.
        a, b = (-mean) / sigma, (1 - mean) / sigma
        density = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in (a, b)]
        mass = 0.5 * (math.erf(b / math.sqrt(2)) - math.erf(a / math.sqrt(2)))
        expected = mean + sigma * (density[0] - density[1]) / mass
        assert float(values.mean()) == pytest.approx(expected, abs=4 * float(values.std()) / math.sqrt(2000))
    assert truncated_normal(0.3, 0.0, generator) == 0.3


def test_noise_declines_after_the_warmup() -> None:
    agent = Agent(2, SETTINGS, 0)
    sigmas = []
    for _ in range(6):
        sigmas.append(agent.sigma)
        agent.remember(torch.zeros(1, 2), torch.zeros(1), 0.0)
    assert sigmas == pytest.approx([0.5, 0.5, 0.5, 0.5, 0.45, 0.405])


def test_replay_holds_the_last_transitions() -> None:
    agent = Agent(2, SETTINGS, 0)
    for episode in range(4):
        states = torch.tensor([[episode, step] for step in range(3)], dtype=torch.float32)
        agent.remember(states, torch.tensor([0.1, 0.2, 0.3]), float(episode))
    assert agent.stored == 12
    rows = agent.replay
    assert rows[:2].tolist() == [
        pytest.approx([3, 1, 0.2, 3, 1, 3, 2]),  # state, action, reward, more, next state
        pytest.approx([3, 2, 0.3, 3, 0, 0, 0]),
    ]
    assert rows[2].tolist() == pytest.approx([0, 2, 0.3, 0, 0, 0, 0])
    assert rows[9].tolist() == pytest.approx([3, 0, 0.1, 3, 1, 3, 1])


def test_targets_follow_slowly_and_nothing_is_learnt_in_the_warmup() -> None:
    agent = Agent(2, SETTINGS, 0)
    before = copy.deepcopy(agent.actor.state_dict())
    for _ in range(3):
        agent.remember(torch.rand(2, 2), torch.rand(2), 1.0)
        agent.learn(2, Baseline())
    assert all(torch.equal(value, before[name]) for name, value in agent.actor.state_dict().items())
    agent.remember(torch.rand(2, 2), torch.rand(2), 1.0)
    agent.learn(1, Baseline())
    for name, value in agent.actor.state_dict().items():
        assert not torch.equal(value, before[name])
        expected = before[name] + 0.01 * (value - before[name])
        torch.testing.assert_close(agent.actor_target.state_dict()[name], expected)


def test_the_baseline_is_a_moving_average() -> None:
    baseline = Baseline()
    assert [baseline.update(reward) for reward in (4.0, 0.0, 2.0)] == [4.0, 2.0, 2.0]


def test_it_finds_the_action_that_pays() -> None:
    agent = Agent(1, AgentSettings(warmup=20, sigma=0.5, sigma_decay=0.95, capacity=128), 0)
    baseline = Baseline()
    for _ in range(120):
        action = agent.act(torch.ones(1))
        agent.remember(torch.ones(1, 1), torch.tensor([action]), -abs(action - 0.8))
        agent.learn(4, baseline)
    with torch.no_grad():
        assert float(agent.actor(torch.ones(1))) == pytest.approx(0.8, abs=0.15)


def test_state_and_global_generator() -> None:
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    agents = [Agent(2, SETTINGS, 1), Agent(2, SETTINGS, 2)]
    baselines = [Baseline(), Baseline()]
    for _ in range(5):
        agents[0].remember(torch.rand(2, 2, generator=agents[0].generator), torch.rand(2), 1.0)
        agents[0].learn(2, baselines[0])
    torch.manual_seed(7)
    fresh = Agent(2, SETTINGS, 3)
    assert torch.rand(()) == expected
    fresh.load_state_dict(copy.deepcopy(agents[0].state_dict()))
    baselines[1].value = baselines[0].value
    for agent, baseline in zip((agents[0], fresh), baselines, strict=True):
        agent.remember(torch.ones(1, 2), torch.ones(1), 0.5)
        agent.learn(3, baseline)
    assert agents[0].act(torch.ones(2)) == fresh.act(torch.ones(2))
    for name, value in agents[0].critic.state_dict().items():
        assert torch.equal(value, fresh.critic.state_dict()[name])
