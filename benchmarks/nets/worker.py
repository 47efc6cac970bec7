"""A peer that needs its own Python environment: loads files and times calls, as told over a pipe.

Run by that environment's interpreter, so it imports nothing of this package. One JSON request a line on stdin, one
JSON answer a line on stdout:

    {"do": "load", "key": ..., "engine": "deepsparse" | "litert", "path": ..., "input": FILE.npy} -> {"seconds": ...}
    {"do": "time", "key": ..., "calls": n} -> {"seconds": of all n calls}
    {"do": "output", "key": ..., "path": FILE.npy} -> {}
    {"do": "drop", "key": ...} -> {}
    {"do": "convert", "program": FILE.pt2, "calibration": FILE.npy, "floats": OUT, "int8": OUT} -> {}
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class DeepSparse:
    def __init__(self, path: str, x: Array) -> None:
        import deepsparse

        self.inputs = [x]
        self.engine = deepsparse.Engine(path, batch_size=len(x), num_cores=1)

    def run(self) -> Array:
        output: Array = self.engine.run(self.inputs, val_inp=False)[0]
        return output

    output = run


class LiteRT:
    def __init__(self, path: str, x: Array) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(path, num_threads=1)
        found = self.interpreter.get_input_details()[0]
        if len(x) != found["shape"][0]:
            self.interpreter.resize_tensor_input(found["index"], x.shape)
        self.interpreter.allocate_tensors()
        if found["dtype"] == np.int8:
            scale, zero_point = found["quantization"]
            x = np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)
        self.interpreter.set_tensor(found["index"], x)
        self.run = self.interpreter.invoke

    def output(self) -> Array:
        self.run()
        found = self.interpreter.get_output_details()[0]
        output: Array = self.interpreter.get_tensor(found["index"])
        if found["dtype"] == np.int8:
            scale, zero_point = found["quantization"]
            output = (output.astype(np.float32) - zero_point) * scale
        return output


ENGINES = {"deepsparse": DeepSparse, "litert": LiteRT}


def convert(program: str, calibration: str, floats: str, int8: str) -> None:
    """A torch.export program as LiteRT files: float, and int8 by LiteRT's own quantizer from batches of data."""
    import litert_torch
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    data = np.load(calibration)
    litert_torch.convert(torch.export.load(program).module(), (torch.from_numpy(data[0]),)).export(floats)
    (signature, names), *_ = Interpreter(floats).get_signature_list().items()
    tool = quantizer.Quantizer(floats)
    tool.load_quantization_recipe(recipe.static_wi8_ai8())
    ranges = tool.calibrate({signature: [{names["inputs"][0]: batch} for batch in data]})
    tool.quantize(ranges).export_model(int8, overwrite=True)


def answer(request: dict[str, Any], loaded: dict[int, DeepSparse | LiteRT]) -> dict[str, float]:
    todo, key = request["do"], request.get("key", 0)
    start = time.perf_counter()
    if todo == "load":
        loaded[key] = ENGINES[request["engine"]](request["path"], np.load(request["input"]))
    elif todo == "time":
        run = loaded[key].run
        start = time.perf_counter()
        for _ in range(request["calls"]):
            run()
    elif todo == "output":
        np.save(request["path"], loaded[key].output())
    elif todo == "drop":
        del loaded[key]
    elif todo == "convert":
        convert(request["program"], request["calibration"], request["floats"], request["int8"])
    return {"seconds": time.perf_counter() - start}


def main() -> None:
    # The engines print to stdout, from C++ too: that goes to stderr, the answers to the real stdout.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    loaded: dict[int, DeepSparse | LiteRT] = {}
    for line in sys.stdin:
        result: dict[str, Any]
        try:
            result = answer(json.loads(line), loaded)
        except Exception as error:  # the other end decides
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers, flush=True)


if __name__ == "__main__":
    main()
