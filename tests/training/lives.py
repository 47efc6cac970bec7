"""A process that trains again and again: started by path, it forks a trainer for each line of JSON on its stdin.

It has torch loaded and has run nothing in parallel, so that its children may use any number of threads.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

STEPS = 32  # 4 epochs of 8 steps; phase 2 from step 16, warm-up to step 2


class Lives:
    """The test's side: starts trainers, kills them, learns how they ended."""

    def __init__(self, package: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Threads that wait by turning round would take the machine from other tests.
            env=os.environ | {"PYTHONPATH": str(package), "OMP_WAIT_POLICY": "passive"},
            start_new_session=True,
        )

    def _ask(self, **words: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def start(self, run_dir: Path, **options: Any) -> int:
        """Starts a trainer; gives its PID."""
        return self._ask(run_dir=str(run_dir), **options)

    def wait(self, pid: int) -> int:
        """The exit code of a trainer, negative for a signal."""
        return self._ask(wait=pid)

    def close(self) -> None:
        # With all descendants: a worker of torch whose trainer is killed as it starts never ends and holds the pipes.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


def _train(run_dir: str, threads: int, workers: int, rank: int, meeting: str | None, seconds: float) -> None:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from pqk_ext import PQKConfig, fit

    torch.set_num_threads(threads)
    if meeting is not None:
        limit = datetime.timedelta(seconds=max(5, seconds))  # one may be killed before they meet
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=limit
        )

    class Images(Dataset[Any]):
        def __init__(self, size: int) -> None:
            self.x = torch.randn(size, 1, 12, 12, generator=torch.Generator().manual_seed(size))

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> Any:
            return self.x[index] + 0.1 * torch.randn(1, 12, 12), int(self.x[index].mean() > 0)

    def noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=generator)

    torch.manual_seed(0)
    # Large enough that torch and the package divide the work among threads.
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(800, 2)),
    )
    fit(
        model,
        Images(256),
        Images(48),
        PQKConfig(sparsity=0.7, weight_bits=4, total_steps=STEPS, warmup_fraction=0.125, mask_update_interval=4),
        run_dir,
        batch_size=32,
        augment=noise,
        num_workers=workers,
        checkpoint_steps=1,
        log_every=4,
        tensorboard=False,
        progress=False,
        process_timeout=seconds,
    )


def _serve() -> None:
    import torch

    # The first optimizer imports half of torch: here, and not in every child.
    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for line in sys.stdin:
        words = json.loads(line)
        if "wait" in words:
            print(os.waitstatus_to_exitcode(os.waitpid(words["wait"], 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(os.open(os.devnull, os.O_RDWR), 0)
                os.dup2(0, 1)
                _train(**words)
                code = 0
            finally:
                os._exit(code)
        print(pid, flush=True)


if __name__ == "__main__":
    _serve()
