"""The Python loader under coverage-guided mutation: PYTHONPATH=. python tests/fuzz/loads.py CORPUS [libFuzzer options].

Needs the package `atheris`. The digest is made right before loading, or the fuzzer would never get past it. Whatever
loads is run by the engine; anything but a FormatError with code, field, expected and got is a crash.
"""

from __future__ import annotations

import sys

import numpy as np

MAX_BYTES = 2**22


def sign(data: bytes) -> bytes:
    from pqk_ext.runtime import container

    begin, end = container.DIGEST_OFFSET, container.DIGEST_OFFSET + 64
    return data[:begin] + container._digest(data).encode() + data[end:] if len(data) >= end else data


def attempt(data: bytes) -> str:
    """The code of a named error, or "loaded"."""
    from pqk_ext.errors import FormatError
    from pqk_ext.runtime import Model
    from pqk_ext.runtime import format as pqk_format

    try:
        graph = pqk_format.loads(sign(data), max_decoded_bytes=MAX_BYTES)
        model = Model.from_graph(graph, max_activation_bytes=2 * MAX_BYTES)
    except FormatError as error:
        if not (error.code.startswith("E_") and error.field and error.expected and error.got):
            raise RuntimeError("an error without its names") from error
        return error.code
    model(np.full((1, *model.input_shape), 0.25, np.float32))
    return "loaded"


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["pqk_ext.runtime"]):
        import pqk_ext.runtime

        assert pqk_ext.runtime
    atheris.Setup(sys.argv, attempt_or_crash)
    atheris.Fuzz()


def attempt_or_crash(data: bytes) -> None:
    attempt(data)


if __name__ == "__main__":
    main()
