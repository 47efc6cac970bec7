"""Scores settings of ``pqk demo`` on the validation fold; the test fold is never read.

    python tools/tune_demo.py --arm pqk --seeds 2 lr=0.005 lr=0.01,phase1=0.3

Each argument is one set of changes to ``pqk_ext.demo.Recipe``. Prints one line for each set and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch

from pqk_ext import demo


def _recipe(changes: str) -> demo.Recipe:
    kinds = {field.name: type(field.default) for field in dataclasses.fields(demo.Recipe)}
    values = dict(pair.split("=") for pair in changes.split(",") if pair)
    return demo.Recipe(
        **{name: value == "True" if kinds[name] is bool else kinds[name](value) for name, value in values.items()}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arm", action="append", choices=demo.ARMS, help="may be repeated; default: all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("changes", nargs="*", default=[""])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, validation = demo.load_split("train"), demo.load_split("validation")
    for changes in arguments.changes:
        recipe = _recipe(changes)
        for seed in range(arguments.seeds):
            for arm in arguments.arm or demo.ARMS:
                started = time.process_time()
                model = demo.train(arm, recipe, seed, train)
                scores = [100 * demo.accuracy(model, data) for data in (validation, train)]
                seconds = time.process_time() - started
                print(
                    f"{changes or 'default':40} {arm:15} seed {seed}: validation {scores[0]:.2f} %, "
                    f"train {scores[1]:.2f} %, {seconds:.0f} s of CPU",
                    flush=True,
                )


if __name__ == "__main__":
    main()
