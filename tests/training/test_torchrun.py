"""``torchrun`` itself: own loops and ``fit`` as the README shows them, and a worker that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

import pqk_ext

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")

OWN_LOOP = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import pqk_ext
from pqk_ext.data import keyword_spotting
from pqk_ext.distributed import Objective, check_in_sync, synchronize

dist.init_process_group("gloo")
x, y = keyword_spotting("train").tensors
config = pqk_ext.PQKConfig(sparsity=0.8, total_steps=6)
model = pqk_ext.prepare(pqk_ext.models.create("ds_cnn", pretrained=True), config, example_inputs=x[:8])
objective = DistributedDataParallel(Objective(model), find_unused_parameters=True)
optimizer = torch.optim.AdamW(model.pqk.parameter_groups(lr=0.005))
torch.manual_seed(dist.get_rank())  # other samples in each process
for step in range(config.total_steps):
    part = torch.randint(len(x), (32,))
    objective(x[part], y[part]).backward()
    optimizer.step()
    model.pqk.step()  # in every process: equal weights give equal masks
    optimizer.zero_grad()
synchronize(model)  # running statistics from process 0
check_in_sync(model)  # raises and names what differs
if dist.get_rank() == 0:
    pqk_ext.export(model, "two.pqk")
dist.destroy_process_group()
"""

FIT = """
import os
from pathlib import Path

import torch

from pqk_ext import PQKConfig, fit, models
from pqk_ext.data import keyword_spotting

Path(f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
torch.set_num_threads(1)
result = fit(
    models.create("ds_cnn", pretrained=True),
    keyword_spotting("train"),
    keyword_spotting("validation"),
    PQKConfig(sparsity=0.8, total_steps=100_000),
    "run",
    batch_size=64,  # of both processes together
    log_every=1,
    process_timeout=20,
)
"""


def _start(script: str, folder: Path) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(pqk_ext.__file__).parent.parent)},
    )


@pytest.mark.long
def test_own_loop(tmp_path: Path) -> None:
    process = _start(OWN_LOOP, tmp_path)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (tmp_path / "two.pqk").stat().st_size > 5000


def test_a_killed_worker_ends_the_other_which_names_it(tmp_path: Path) -> None:
    process = _start(FIT, tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() or not metrics.stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    pid = int((tmp_path / "pid1").read_text())
    start = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - start < 60
    assert process.returncode != 0
    assert f"ProcessLostError: training cannot go on: process 1 (pid {pid} on " in said
