"""AJPQ: pruning and quantization as one allocation of bits, found by two agents under one importance."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pqk_ext.fields import Checked, choice, flag, integer, number
from pqk_ext.methods._allocation import IMPORTANCE, Allocation, Space
from pqk_ext.methods._allocation_reward import Evaluator, TunedEvaluator
from pqk_ext.methods._allocation_search import Controllers, LocalSearch, Outcome, Strategy, Uniform, search
from pqk_ext.methods._ddpg import AgentSettings
from pqk_ext.methods._registry import method
from pqk_ext.methods.run import Run
from pqk_ext.nn import PQKLayer
from pqk_ext.preparation import PreparedModel
from pqk_ext.thin import thin
from pqk_ext.training.data import derived_seed

__all__ = ["AJPQSettings", "ajpq"]

SEARCHES = ("rl", "random", "greedy", "uniform", "prune_then_quantize")
MODES = ("mixed", "fixed")
_MEMORY = 128  # episodes that agents remember
_CURVE = 10  # points of the curve of rewards in the result
_DRAW_AGENTS, _DRAW_SAMPLES, _DRAW_TUNING = 101, 102, 103


@dataclasses.dataclass(frozen=True, kw_only=True)
class AJPQSettings(Checked):
    """What AJPQ searches, and how.

    Attributes:
        search: ``rl`` is the method. Controls, each with as many evaluated allocations: ``random`` actions behind the
            same action wall; ``greedy`` by importance, then changes that help; ``prune_then_quantize``, the layer
            controller at ``highest_bits`` with half of the episodes, then the channel controller on what it kept;
            ``uniform``, one allocation: equal bits everywhere, or in fixed mode equal shares of channels.
        mode: ``mixed``: bits by the channel controller; ``fixed``: ``fixed_bits`` for all that is kept.
        budget: bits of the network, as a share of those of the unpruned network of 8 bits. Counts weights, multiplier
            and bias of each kernel, and in mixed mode 4 bits that say how many bits the kernel has. The file differs:
            it has a header, and codes the weights of a layer together, by how often each code occurs.
        fixed_bits: of kept kernels in fixed mode.
        lowest_bits: fewest of a kept kernel in mixed mode.
        highest_bits: most of a kept kernel in mixed mode.
        parts: parts by rank into which the kept kernels of a layer are split; each has one number of bits.
        lowest_keep: share of the channels of a layer that stays at least.
        layer_importance: ranks channels for removal: ``l1``, ``l2``, ``l1_gamma``, ``gamma`` or ``distance``.
        channel_importance: ranks kept kernels for bits. AJPQ has one importance for both.
        monotone: less important parts of a layer get no more bits than more important ones.
        float_steps: training steps of the float network before the search.
        episodes: allocations that are evaluated.
        warmup: of them with random actions, before the agents learn.
        sigma: deviation of the exploration after the warm-up.
        sigma_decay: its factor from episode to episode.
        reward_samples: training samples on which accuracy is the reward.
        batch_statistics: rewards with the batch's statistics in batch norms instead of the trained ones.
        reward_steps: steps of fine-tuning before each reward; 0 asks the network as it is.
        reward_lr: learning rate of these.
        pruning_share: of prune_then_quantize: the pruning stage's target is ``budget ** pruning_share``.
    """

    search: str = choice(*SEARCHES)
    mode: str = choice(*MODES)
    budget: float = number(0.2, 0, 1, open_low=True)
    fixed_bits: int = integer(4, 2, 8)
    lowest_bits: int = integer(2, 2, 8)
    highest_bits: int = integer(8, 2, 8)
    parts: int = integer(4, 1)
    lowest_keep: float = number(0.2, 0, 1, open_low=True)
    layer_importance: str = choice(*IMPORTANCE)
    channel_importance: str = choice(*IMPORTANCE)
    monotone: bool = flag(False)
    float_steps: int = integer(0, 0)
    episodes: int = integer(800, 1)
    warmup: int = integer(100, 0)
    sigma: float = number(0.5, 0, 1, open_low=True)
    sigma_decay: float = number(0.95, 0, 1, open_low=True)
    reward_samples: int = integer(500, 1)
    batch_statistics: bool = flag(False)
    reward_steps: int = integer(0, 0)
    reward_lr: float = number(1e-3, 0, open_low=True)
    pruning_share: float = number(0.5, 0, 1, open_low=True)

    def check_together(self) -> None:
        if self.highest_bits < self.lowest_bits:
            raise ValueError(
                f"highest_bits: expected at least lowest_bits = {self.lowest_bits}, got {self.highest_bits}"
            )
        if self.search == "prune_then_quantize" and (self.mode == "fixed" or self.episodes < 2):
            raise ValueError(
                "search: prune_then_quantize needs mode mixed and 2 episodes or more, got mode "
                f"{self.mode} and {self.episodes} episodes"
            )

    @property
    def bits(self) -> tuple[int, int]:
        """Fewest and most bits of a kept kernel."""
        return (self.fixed_bits,) * 2 if self.mode == "fixed" else (self.lowest_bits, self.highest_bits)


class _Search:
    """The search of one run: its network, its samples, and its stages."""

    def __init__(self, run: Run, model: nn.Module) -> None:
        self.run, self.model = run, model
        self.settings: AJPQSettings = run.settings
        generator = torch.Generator().manual_seed(derived_seed(run.seed, _DRAW_SAMPLES))
        x, y = run.data.train
        order = torch.randperm(len(x), generator=generator)
        chosen = order[: self.settings.reward_samples]
        self.samples = x[chosen], y[chosen]
        self.others = order[self.settings.reward_samples :]

    def space(self, bits: tuple[int, int]) -> Space:
        own = self.settings
        return Space(
            self.model,
            self.run.example_inputs,
            layer_importance=own.layer_importance,
            channel_importance=own.channel_importance,
            lowest_keep=own.lowest_keep,
            bits=bits,
            parts=own.parts,
        )

    def controllers(self, space: Space, budget: int, reference: float, keep: tuple[int, ...] | None = None) -> Strategy:
        own = self.settings
        warmup = own.episodes if own.search == "random" else own.warmup
        agents = AgentSettings(warmup, own.sigma, own.sigma_decay, _MEMORY)
        seed = derived_seed(self.run.seed, _DRAW_AGENTS, 0 if keep is None else 1)
        return Controllers(space, budget, agents, seed, reference, keep=keep, monotone=own.monotone)

    def run_stage(
        self, name: str, space: Space, share: float, episodes: int, keep: tuple[int, ...] | None = None
    ) -> Outcome:
        """One search for allocations within ``share`` of the 8-bit network."""
        own, budget = self.settings, int(share * space.reference())
        seed = derived_seed(self.run.seed, _DRAW_AGENTS)
        evaluator = Evaluator(self.model, space, self.samples, batch_statistics=own.batch_statistics)
        strategy: Strategy
        if own.search == "greedy":
            strategy = LocalSearch(space, budget, seed)
        elif own.search == "uniform":
            strategy, episodes = Uniform(space, budget), 1
        else:
            dense = Allocation(space.most, space.all_bits(8))
            strategy = self.controllers(space, budget, evaluator(space.channel_bits(dense)), keep)
        evaluate: Callable[[dict[str, Tensor]], float] = evaluator
        if own.reward_steps:
            evaluate = TunedEvaluator(
                lambda bits: prepared_with_bits(self.run, self.model, bits, space.bits),
                self.samples,
                (self.run.data.train[0][self.others], self.run.data.train[1][self.others]),
                steps=own.reward_steps,
                lr=own.reward_lr,
                batch_size=self.run.recipe.training.batch_size,
                seed=derived_seed(self.run.seed, _DRAW_TUNING),
            )
            self.run.extra_steps += episodes * own.reward_steps
        path = self.run.directory / "search" / f"{name}.pt"
        return search(
            strategy,
            space,
            budget,
            lambda a: evaluate(space.channel_bits(a)),
            episodes,
            path,
            progress=self.run.progress,
        )

    def result(self) -> tuple[Space, Outcome]:
        """All stages; the space and the outcome of the last one."""
        own, space = self.settings, self.space(self.settings.bits)
        if own.search != "prune_then_quantize":
            return space, self.run_stage("search", space, own.budget, own.episodes)
        first = self.space((own.highest_bits, own.highest_bits))
        half = own.episodes // 2
        pruned = self.run_stage("prune", first, own.budget**own.pruning_share, half)
        assert pruned.best is not None
        return space, self.run_stage("quantize", space, own.budget, own.episodes - half, pruned.best.keep)


def prepared_with_bits(run: Run, model: nn.Module, bits: dict[str, Tensor], limits: tuple[int, int]) -> PreparedModel:
    """The network without its kernels of 0 bits, prepared, the other kernels with their bits."""
    thinned = thin(model, {name: own > 0 for name, own in bits.items()}, example_inputs=run.example_inputs)
    widest = limits[1]
    prepared = run.prepare(thinned, weight_bits=widest, first_layer_bits=widest, last_layer_bits=widest)
    if limits[0] < limits[1]:
        for name, own in bits.items():
            layer = prepared.get_submodule(name)
            assert isinstance(layer, PQKLayer)
            layer.set_weight_bits(own[own > 0])
    return prepared


@method(AJPQSettings)
def ajpq(run: Run) -> dict[str, nn.Module]:
    """Tang, Wei and Li, "Automated Model Compression by Jointly Applied Pruning and Quantization", 2020 (2011.06231).

    Certain, from the abstract: pruning is quantization to 0 bits, so that both are one problem of bits for each kernel;
    hierarchical reinforcement learning, where a layer controller chooses each layer's sparsity and a channel controller
    the bits of kernels; one importance for both; fixed and mixed precision; one step instead of two. Reconstructed:
    states, agents and exploration from AMC and HAQ; actions on parts of kernels of neighbouring rank; rewards, which
    are accuracies on samples of the training set, before any tuning unless ``reward_steps``; and the action wall, by
    which every episode meets the budget: shares of channels are cut to what the cheapest completion allows, then bits
    are lowered in turn from the least important part on. The agents learn from what was carried out.

    Channels tied by additions and depthwise convolutions go together; their bits may differ. Cost is counted after
    outputs and the inputs that read them are gone, with what describes a kernel. The found network is thinned for good,
    trained with quantization as ``training`` and ``pqk`` say, and written; with ``pqk.sparsity`` above 0 its kept
    weights are pruned one by one besides.
    """
    settings: AJPQSettings = run.settings
    model = run.network()
    if settings.float_steps:
        model = run.fit("float", model, steps=settings.float_steps)
        run.extra_steps += settings.float_steps
    with run.timed():
        space, outcome = _Search(run, model.eval()).result()
    assert outcome.best is not None
    bits = space.channel_bits(outcome.best)
    run.facts |= _facts(settings, space, outcome)
    run.facts["bits"] = {name: torch.bincount(own, minlength=9).tolist() for name, own in bits.items()}
    return {"ajpq": run.fit("student", prepared_with_bits(run, model, bits, space.bits))}


def _facts(settings: AJPQSettings, space: Space, outcome: Outcome) -> dict[str, Any]:
    """What the result says of the search; ``bits`` besides are kernels by bits, 0 to 8, of each layer."""
    assert outcome.best is not None
    accuracies = outcome.accuracies
    edges = [len(accuracies) * i // _CURVE for i in range(_CURVE + 1)]
    curve = [statistics.fmean(accuracies[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    return {
        "evaluated": 1 if settings.search == "uniform" else settings.episodes,
        "budget_bits": int(settings.budget * space.reference()),
        "cost_bits": space.cost(outcome.best.keep, outcome.best.bits),
        "largest_cost_bits": max(outcome.costs),
        "reward_accuracy": outcome.accuracy,
        "reward_curve": curve,
        "kept_channels": sum(outcome.best.keep) / max(1, sum(space.most)),
    }
