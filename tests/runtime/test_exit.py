"""The interpreter may exit while threads still run a model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pqk_ext.runtime import format
from tests.runtime.graphs import resnet8

SCRIPT = """
import sys, threading, time
import numpy as np
import pqk_ext
net = pqk_ext.runtime.load(sys.argv[1], num_threads=2)
x = np.zeros((64, 3, 32, 32), np.float32)
started = threading.Barrier(4)

def run():
    started.wait()
    while True:
        net(x)

for _ in range(3):
    threading.Thread(target=run, daemon=True).start()
started.wait()
time.sleep(0.1)
"""


def test_daemon_threads_do_not_end_the_process(tmp_path: Path) -> None:
    format.write(resnet8(), tmp_path / "net.pqk")
    for _ in range(3):
        subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "net.pqk")], check=True, timeout=60)
