"""Methods side by side: the same seeds, the same steps, means, deviations and paired differences.

An *experiment* has *arms* (a recipe with some settings changed); an arm with a seed is a *cell*, one run of
``pqk train --recipe`` in a process of its own. ``pqk compare`` runs experiments.

>>> from pqk_ext.compare import read_experiment, run_experiment
>>> run_experiment(read_experiment("rco.yaml"), Path("runs/rco"), jobs=2)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pqk_ext.compare.experiment import Arm, Experiment, from_methods, read_experiment
    from pqk_ext.compare.runner import run_experiment

__all__ = ["Arm", "Experiment", "from_methods", "read_experiment", "run_experiment"]


def __getattr__(name: str) -> Any:
    """Imports on demand: the process of a cell needs nothing of this before ``pqk`` begins."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pqk_ext.compare import experiment, runner

    return getattr(runner if name == "run_experiment" else experiment, name)
