"""``assert_resume``: the proof that a run that was stopped ends with the bits of one that was not."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pqk_ext.training.checkpoint import read_checkpoint, write_checkpoint
from pqk_ext.training.environment import random_states, restore_random_states
from pqk_ext.training.errors import TrainingInterrupted
from pqk_ext.training.loop import fit
from pqk_ext.training.packing import pack
from pqk_ext.training.signals import stop_after_step

__all__ = ["Stateful", "assert_resume"]


class Stateful(Protocol):
    """What holds a part of a run's state: a module, an optimizer, a scheduler, a loader that knows its position."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


Step = Callable[[int], Any]
Made = tuple[Mapping[str, Stateful], Step] | Mapping[str, Any]


def assert_resume(make: Callable[[], Made], *, steps: int = 8, stops: Sequence[int] | None = None) -> None:
    """Raises unless a run that is stopped, saved, loaded and carried on ends with the bits of an uninterrupted one.

    For a loop of your own, ``make`` builds everything anew and gives the objects whose ``state_dict`` is saved, by any
    names, and a function that does training step ``i``::

        def make():
            model = pqk_ext.prepare(Net(), config, example_inputs=x[:1])
            optimizer = torch.optim.SGD(model.pqk.parameter_groups(lr=0.1), lr=0.1, momentum=0.9)

            def step(i):
                loss = model.pqk.loss(*batch(i))
                loss.backward(); optimizer.step(); model.pqk.step(); optimizer.zero_grad()
                return loss

            return {"model": model, "optimizer": optimizer}, step

        pqk_ext.assert_resume(make, steps=12)

    The run is done twice without a stop. Then, for each stop, the saved state goes through a checkpoint file into
    objects newly made from other random numbers, the global generators of torch, NumPy and Python are put back, and
    the run goes on; after each step all state and what ``step`` returned are compared byte for byte. So whatever
    matters and is not in a ``state_dict`` (a counter, a generator of one's own, a position in the data) is found.
    What lives in global variables is not made anew, and so not found.

    For :func:`pqk_ext.fit`, ``make`` gives its arguments without ``run_dir``, as a dictionary; the runs are stopped as
    by SIGTERM, and the last and best checkpoints and the metrics are compared::

        pqk_ext.assert_resume(lambda: dict(model=Net(), train=train, val=val, config=config, batch_size=32))

    Args:
        make: see above; called for each run.
        steps: length of a run of your own loop; cover both phases and some updates of masks. With ``fit`` unused.
        stops: steps after which to stop, one a run; by default after the first, in the middle and before the last.

    Raises:
        AssertionError: names stop, step and the first tensor or value that differs.
        TypeError: ``make`` gives something else, or state that a checkpoint cannot hold.
        ValueError: a stop outside the run.
    """
    with _generators_put_back(), tempfile.TemporaryDirectory(prefix="pqk-resume-") as folder:
        _seed(0)
        made = make()
        if isinstance(made, Mapping):
            _check_fit(make, made, stops, Path(folder))
        elif isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Mapping) and callable(made[1]):
            _check_loop(make, made, steps, stops, Path(folder) / "state.ckpt")
        else:
            raise TypeError(
                "make: expected (objects by name, step function) or a dictionary of fit's arguments, got "
                f"{type(made).__name__}"
            )


# --- own loops ------------------------------------------------------------------------------------------------


def _check_loop(make: Callable[[], Any], made: Any, steps: int, stops: Sequence[int] | None, path: Path) -> None:
    chosen = _stops(steps, stops)
    objects, step = made
    returned = [_flat(step(index)) for index in range(steps)]
    final = _flat(_state(objects))

    _seed(0)
    objects, step = make()
    after = [_flat(_state(objects))]
    saved = {}
    for index in range(steps):
        if index in chosen:
            saved[index] = {"objects": _state(objects), "random": random_states()}
            write_checkpoint(path.with_suffix(f".{index}"), saved[index])
        _compare(returned[index], _flat(step(index)), _NOT_REPEATABLE.format(index + 1), "what the step returned")
        after.append(_flat(_state(objects)))
    _compare(final, after[-1], _NOT_REPEATABLE.format(steps))

    for stop in chosen:
        _seed(1 + stop)
        objects, step = make()
        state = read_checkpoint(path.with_suffix(f".{stop}"))
        for name, item in objects.items():
            item.load_state_dict(state["objects"][name])
        _compare(after[stop], _flat(_state(objects)), f"what was saved after step {stop} is not what was loaded")
        restore_random_states(state["random"])
        for index in range(stop, steps):
            where = f"stopped after step {stop} and resumed, the run differs after step {index + 1}"
            _compare(returned[index], _flat(step(index)), where + _HINT, "what the step returned")
            _compare(after[index + 1], _flat(_state(objects)), where + _HINT)


_HINT = " (something that it depends on is in no state_dict)"
_NOT_REPEATABLE = (
    "two uninterrupted runs from the same seeds differ after step {}: the loop depends on more than its objects and "
    "the generators of torch, NumPy and Python, or asking for state_dict changes it"
)


def _stops(steps: int, stops: Sequence[int] | None) -> list[int]:
    if steps < 1:
        raise ValueError(f"steps: expected an integer of at least 1, got {steps}")
    chosen = sorted({1, steps // 2, steps - 1} & set(range(steps))) if stops is None else sorted(set(stops))
    if not chosen or chosen[0] < 0 or chosen[-1] >= steps:
        raise ValueError(f"stops: expected steps from 0 to {steps - 1}, at least one, got {list(stops or chosen)}")
    return chosen


def _state(objects: Mapping[str, Stateful]) -> dict[str, Any]:
    """A copy that later steps do not change."""
    return {name: _copied(item.state_dict()) for name, item in objects.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


# --- fit ------------------------------------------------------------------------------------------------------


def _check_fit(make: Callable[[], Any], first: Mapping[str, Any], stops: Sequence[int] | None, folder: Path) -> None:
    defaults = {"tensorboard": False, "progress": False}
    whole = fit(run_dir=folder / "whole", **{**defaults, **first})
    steps = int(whole.checkpoint.stem.partition("-")[2])
    for stop in _stops(steps, stops):
        if stop == 0:
            raise ValueError("stops: fit stops after a step, got 0")
        run_dir = folder / f"stopped{stop}"
        _seed(0)
        marked = stop_after_step.set(stop)
        try:
            fit(run_dir=run_dir, **{**defaults, **make()})
        except TrainingInterrupted:
            pass
        else:
            raise AssertionError(f"the run did not stop after step {stop}: it is no longer {steps} steps long")
        finally:
            stop_after_step.reset(marked)
        _seed(1 + stop)
        resumed = fit(run_dir=run_dir, **{**defaults, **make()})
        where = f"stopped after step {stop} and resumed, the run ends with other bits"
        for path in (whole.checkpoint, folder / "whole" / f"best-{whole.best_step:08d}.ckpt"):
            other = run_dir / path.name
            if not other.exists():
                raise AssertionError(f"{where}: its best step is {resumed.best_step} instead of {whole.best_step}")
            _compare(_flat(read_checkpoint(path)), _flat(read_checkpoint(other)), where)
        _compare_metrics(folder / "whole", run_dir, where)


def _compare_metrics(whole: Path, resumed: Path, where: str) -> None:
    ours, theirs = ((folder / "metrics.jsonl").read_text().splitlines() for folder in (whole, resumed))
    for line, other in zip(ours, theirs, strict=False):
        if line != other:
            raise AssertionError(f"{where}: metrics.jsonl says {other} instead of {line}")
    if len(ours) != len(theirs):
        raise AssertionError(f"{where}: metrics.jsonl has {len(theirs)} lines instead of {len(ours)}")


# --- comparison -----------------------------------------------------------------------------------------------


def _flat(value: Any) -> dict[str, Any]:
    """Tensors and JSON texts by their place."""
    tensors: dict[str, Tensor] = {}
    packed = pack(_copied(value), "", tensors)
    leaves = dict(_leaves(packed, ""))
    return {name.removeprefix("."): item for name, item in {**tensors, **leaves}.items()}


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif isinstance(value, list) and len(value) < 100:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}.{index}")
    else:
        yield f"{name} (value)", json.dumps(value)


def _compare(expected: dict[str, Any], got: dict[str, Any], where: str, unnamed: str = "state") -> None:
    for name in [*expected, *(name for name in got if name not in expected)]:
        label = name or unnamed
        if name not in expected or name not in got:
            raise AssertionError(f"{where}: {label} is {'missing' if name not in got else 'new'}")
        difference = _difference(expected[name], got[name])
        if difference:
            raise AssertionError(f"{where}: {label} {difference}")


def _difference(a: Any, b: Any) -> str:
    """How two leaves differ; empty if they have the same bits."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return "" if type(a) is type(b) and a == b else f"is {b} instead of {a}"
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"is {b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}"
    # By bytes: two NaNs may be equal, and 0 and -0 are not.
    bytes_of_a, bytes_of_b = (
        t.contiguous().reshape(-1, 1).view(torch.uint8).reshape(t.numel(), -1) if t.numel() else t for t in (a, b)
    )
    different = (bytes_of_a != bytes_of_b).any(-1) if a.numel() else torch.zeros(1, dtype=torch.bool)
    if not bool(different.any()):
        return ""
    at = int(different.nonzero()[0])
    index = [int(i) for i in np.unravel_index(at, a.shape)] if a.dim() else []
    return (
        f"differs in {int(different.sum())} of {a.numel()} elements, first at {index}: "
        f"{b.flatten()[at].item()!r} instead of {a.flatten()[at].item()!r}"
    )


# --- random numbers -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _generators_put_back() -> Iterator[None]:
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
