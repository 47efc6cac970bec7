"""Deep deterministic policy gradient for one action in [0, 1] (Lillicrap et al., ICLR 2016).

The settings are those of AMC (He et al., ECCV 2018) and HAQ (Wang et al., CVPR 2019): actor and critic of two hidden
layers, soft targets, exploration by a truncated normal distribution, the reward of the whole episode at each
transition, less a moving average.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Agent", "AgentSettings", "Baseline", "truncated_normal"]

_HIDDEN = 300
_ACTOR_LR = 1e-4
_CRITIC_LR = 1e-3
_SOFT_TARGET = 0.01
_DISCOUNT = 1.0
_BATCH = 64
_AVERAGE = 0.5
_LAST_LAYER = 3e-3  # initial range of the last layers, as in the DDPG paper: actions begin near the middle


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """How an agent explores and remembers.

    Attributes:
        warmup: episodes of uniformly random actions, without learning.
        sigma: standard deviation of the noise on actions after them.
        sigma_decay: its factor from episode to episode.
        capacity: transitions that are remembered; the oldest are forgotten.
    """

    warmup: int
    sigma: float
    sigma_decay: float
    capacity: int


class Baseline:
    """Moving average of rewards, which agents that share their reward share too."""

    def __init__(self) -> None:
        self.value: float | None = None

    def update(self, reward: float) -> float:
        """Takes a batch's mean reward in; gives the new average."""
        self.value = reward if self.value is None else self.value + _AVERAGE * (reward - self.value)
        return self.value


def truncated_normal(mean: float, sigma: float, generator: torch.Generator) -> float:
    """One draw from a normal distribution within [0, 1], by its inverse; ``mean`` itself where ``sigma`` is 0."""
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    if sigma <= 0:
        return min(1.0, max(0.0, mean))
    low, high = (torch.special.ndtr(torch.tensor((edge - mean) / sigma, dtype=torch.float64)) for edge in (0.0, 1.0))
    value = mean + sigma * float(torch.special.ndtri(low + uniform * (high - low)))
    return min(1.0, max(0.0, value)) if math.isfinite(value) else min(1.0, max(0.0, mean))


def _network(inputs: int) -> nn.Sequential:
    hidden = (nn.Linear(inputs, _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU())
    last = nn.Linear(_HIDDEN, 1)
    nn.init.uniform_(last.weight, -_LAST_LAYER, _LAST_LAYER)
    nn.init.uniform_(last.bias, -_LAST_LAYER, _LAST_LAYER)
    return nn.Sequential(*hidden, last)


class Agent:
    """Chooses actions and learns from episodes.

    Args:
        features: length of a state; each feature should lie in [0, 1].
        settings: exploration and memory.
        seed: of the networks' initialization and of all that is drawn; the global generator is left as it was.
    """

    def __init__(self, features: int, settings: AgentSettings, seed: int) -> None:
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.actor = nn.Sequential(*_network(features), nn.Sigmoid())
            self.critic = _network(features + 1)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self._actor_optimizer = torch.optim.Adam(self.actor.parameters(), _ACTOR_LR)
        self._critic_optimizer = torch.optim.Adam(self.critic.parameters(), _CRITIC_LR)
        # One row a transition: state, action, reward, whether more follow, next state.
        self.replay = torch.zeros(settings.capacity, 2 * features + 3)
        self.stored = 0  # since the beginning
        self.episode = 0

    @property
    def sigma(self) -> float:
        """Standard deviation of the exploration in the present episode."""
        return self.settings.sigma * self.settings.sigma_decay ** max(0, self.episode - self.settings.warmup)

    @torch.no_grad()
    def act(self, state: Tensor) -> float:
        """An action for a state ``(features,)``: random during the warm-up, then the actor's with noise."""
        if self.episode < self.settings.warmup:
            return float(torch.rand((), generator=self.generator))
        return truncated_normal(float(self.actor(state)), self.sigma, self.generator)

    def remember(self, states: Tensor, actions: Tensor, reward: float) -> None:
        """Stores an episode and ends it.

        Args:
            states: float32 ``(steps, features)``.
            actions: ``(steps,)``, those that were carried out.
            reward: of the whole episode; every transition gets it.
        """
        following = torch.cat((states[1:], torch.zeros_like(states[:1])))
        more = torch.ones(len(states), 1)
        more[-1:] = 0
        rewards = torch.full_like(more, reward)
        rows = torch.cat((states, actions[:, None].to(states.dtype), rewards, more, following), 1)
        places = (self.stored + torch.arange(len(rows))) % len(self.replay)
        self.replay[places] = rows
        self.stored += len(rows)
        self.episode += 1

    def learn(self, updates: int, baseline: Baseline) -> None:
        """Makes so many steps of both networks, each from a batch of the replay; none during the warm-up."""
        if self.episode <= self.settings.warmup:
            return
        for _ in range(updates):
            self._step(baseline)

    def _step(self, baseline: Baseline) -> None:
        filled = min(self.stored, len(self.replay))
        rows = self.replay[torch.randint(filled, (_BATCH,), generator=self.generator)]
        features = (rows.shape[1] - 3) // 2
        state, action, reward, more, following = rows.split((features, 1, 1, 1, features), 1)
        reward = reward - baseline.update(float(reward.mean()))
        with torch.no_grad():
            future = self.critic_target(torch.cat((following, self.actor_target(following)), 1))
        error = F.mse_loss(self.critic(torch.cat((state, action), 1)), reward + _DISCOUNT * more * future)
        self._critic_optimizer.zero_grad()
        error.backward()
        self._critic_optimizer.step()
        value = self.critic(torch.cat((state, self.actor(state)), 1)).mean()
        self._actor_optimizer.zero_grad()
        (-value).backward()
        self._actor_optimizer.step()
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            with torch.no_grad():
                for own, slow in zip(network.parameters(), target.parameters(), strict=True):
                    slow.lerp_(own, _SOFT_TARGET)

    def _parts(self) -> dict[str, Any]:
        names = ("actor", "critic", "actor_target", "critic_target", "_actor_optimizer", "_critic_optimizer")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the agent's future depends on."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        own = {"generator": self.generator.get_state(), "replay": self.replay}
        return {**state, **own, "stored": self.stored, "episode": self.episode}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state_dict`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.replay.copy_(state["replay"])
        self.stored, self.episode = state["stored"], state["episode"]
