"""A loaded network: the front of the native engine."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pqk_ext import _core
from pqk_ext.runtime import coded, cuda, kernel_table, reader
from pqk_ext.runtime.graph import Graph, Node

__all__ = ["MAX_ACTIVATION_BYTES", "Model", "load"]

MAX_ACTIVATION_BYTES = 1 << 30


class Model:
    """A network ready to run; get one from :func:`load` or :meth:`from_graph`.

    One object may serve any number of Python threads at once; results do not depend on them, nor on ``num_threads``,
    the batch or the CPU. After ``fork()`` the child can use it, on one thread.

    A batch goes to the threads image by image, one image in parts of its large layers. The threads belong to the model:
    between calls they sleep (after 20 us of waiting for work), so that other pools, such as torch's, find the cores
    free. Two pools that work at the same time share the cores, which slows both.

    Attributes:
        graph: what it computes, see :mod:`pqk_ext.runtime.graph`. A weight that stays coded is decoded whenever it is
            looked at; of the others it holds a copy, beside those that the kernels have packed.
        nbytes: size of the file in bytes; 0 for a model made by :meth:`from_graph`.
        num_threads: threads that one call may use.
        device: ``"cpu"``, or the CUDA device that computes, ``"cuda:0"``.
        input_shape: of one sample, without the batch dimension.
        output_shape: of one result, without the batch dimension.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        num_threads: int,
        nbytes: int,
        max_activation_bytes: int,
        kernels: Mapping[str, str] | None = None,
        tune: bool = True,
        device: str = "cpu",
        payloads: Mapping[int, coded.Payload] | None = None,
    ) -> None:
        payloads = payloads or {}
        self.graph = coded.keep(graph, payloads)
        self.nbytes = nbytes
        self.num_threads = num_threads
        self.input_shape = graph.input.shape
        index = cuda.index_of(device)
        self.device = device if index is None else f"cuda:{index}"
        self._engine: cuda.NativeEngine
        if index is not None:
            self._engine = cuda.make_engine(graph, index, max_activation_bytes, kernels)
        else:
            engine = self._engine = _core.Engine(
                graph,
                num_threads=num_threads,
                max_activation_bytes=max_activation_bytes,
                kernels=_checked_choices(graph, kernels),
                kernel_table=kernel_table.read(),
                measure=tune,
                coded=dict(payloads),
            )
            kernel_table.remember(engine.measured)
        self.output_shape = graph.output_shape
        self._run = self._engine.run

    @classmethod
    def from_graph(
        cls,
        graph: Graph,
        *,
        num_threads: int = 1,
        max_activation_bytes: int = MAX_ACTIVATION_BYTES,
        kernels: Mapping[str, str] | None = None,
        tune: bool = True,
        weights: str | Mapping[str, str] = "resident",
        device: str = "cpu",
    ) -> Model:
        """A model of a graph in memory.

        Args:
            graph: checked again here, whatever made it.
            num_threads: threads that one call may use, the calling one included.
            max_activation_bytes: a graph whose activations for one sample need more is refused.
            kernels: see :func:`load`.
            tune: see :func:`load`.
            weights: see :func:`load`. Weights that shall be coded are encoded here, by the codec of fewest bytes.
            device: see :func:`load`.

        Raises:
            FormatError: the graph breaks a rule; ``field`` names the node and its part.
            ValueError: ``num_threads``, ``max_activation_bytes``, ``kernels``, ``weights`` or ``device`` out of range.
            RuntimeError: the CUDA device cannot be used; the message names the cause.
        """
        _check_weights(weights, device)
        return cls(
            graph,
            num_threads=num_threads,
            nbytes=0,
            max_activation_bytes=max_activation_bytes,
            kernels=kernels,
            tune=tune,
            device=device,
            payloads={
                index: coded.encode(graph.nodes[index].tensors["weight"]) for index in coded.wanted(graph, weights)
            },
        )

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """:meth:`run` into a new array."""
        return self._run(x)

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Computes the network.

        Args:
            x: float32 ``(N, *input_shape)``, any N; a single sample needs its batch dimension too, ``x[None]``. An
                array that is not C-contiguous is copied first.
            out: float32 ``(N, *output_shape)``, C-contiguous and writeable, that takes the result.

        Returns:
            ``out``, or a new float32 array ``(N, *output_shape)``.

        Raises:
            TypeError: ``x`` or ``out`` is no float32 array. Nothing is converted silently.
            ValueError: a wrong shape, or a NaN in ``x`` (a NaN has no code).
        """
        return self._run(x, out)

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """Name of every node that has work to do, and the kernel that does it."""
        return self._engine.kernels

    @property
    def isa(self) -> str:
        """Instruction set that the kernels were chosen for: that of the process when the model was made. On a CUDA
        device its architecture, for example ``"sm_90"``.
        """
        return self._engine.isa

    @property
    def executor(self) -> str | None:
        """On CUDA who walks the network, ``"resident"`` or ``"steps"``; see ``kernels`` of :func:`load`."""
        return getattr(self._engine, "executor", None)

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights: the payloads of layers that keep theirs coded; one byte a weight for the others, four
        for those of ``float_...`` operators. Kernels for zeros and older CPUs, and padding, take more or less.
        """
        return self._engine.weight_bytes

    @property
    def activation_bytes(self) -> int:
        """Memory that one sample on its way through the network takes."""
        return self._engine.activation_bytes

    def profile(self, x: NDArray[np.float32], repeats: int = 100) -> list[tuple[str, str, float]]:
        """Times every step for the first sample of ``x``, on one thread; on CUDA in a launch of its own, also where
        :meth:`run` computes the whole network in one.

        Returns:
            ``(node, kernel, seconds)`` in execution order, seconds the least of ``repeats`` runs.
        """
        return self._engine.profile(x, repeats)

    def __repr__(self) -> str:
        where = f"num_threads={self.num_threads}" if self.device == "cpu" else f"device={self.device!r}"
        shapes = f"{self.input_shape} -> {self.output_shape}"
        return f"Model({shapes}, {len(self.graph.nodes)} nodes, {where}, isa={self.isa!r})"


def _checked_choices(graph: Graph, kernels: Mapping[str, str] | None) -> dict[str, str]:
    choices = dict(kernels or {})
    integer, floats = _core.conv2d_kernels(), _core.float_conv2d_kernels()
    known = {"*": [*integer, *floats]}
    known |= {node.name: integer for node in graph.nodes if node.op in ("conv2d", "linear")}
    known |= {node.name: floats for node in graph.nodes if node.op in ("float_conv2d", "float_linear")}
    for node, kernel in choices.items():
        if node not in known:
            raise ValueError(f"kernels: expected names of convolution and linear nodes, or '*', got {node!r}")
        if kernel not in known[node]:
            raise ValueError(f"kernels[{node!r}]: expected one of {', '.join(known[node])}, got {kernel!r}")
    return choices


def load(
    path: str | os.PathLike[str],
    *,
    num_threads: int = 1,
    sha256: str | None = None,
    kernels: Mapping[str, str] | None = None,
    tune: bool = True,
    weights: str | Mapping[str, str] = "resident",
    device: str = "cpu",
) -> Model:
    """Reads a ``.pqk`` file, checks all of it, and makes it ready to run.

    Args:
        path: the file.
        num_threads: threads that one call, and loading itself, may use, the calling one included.
        sha256: SHA-256 of the whole file in hexadecimal that it must have.
        kernels: name of a convolution or linear node -> name of the kernel that shall compute it; ``"*"`` stands for
            all nodes without an entry of their own, as far as the kernel is for them. Results do not depend on it.
        tune: time the kernels for layers whose weights hold zeros, where that has not been done on this CPU before
            (see :mod:`pqk_ext.runtime.kernel_table`): milliseconds a layer, once. Without it such layers are computed
            as if their weights were dense.
        weights: ``"resident"``: decoded once, and packed for the kernels. ``"coded"``: kept as in the file, and decoded
            in each run a few rows at a time, which takes less memory and more time; a batch is decoded for once. Or one
            of the words by node name, ``"*"`` for all others. :attr:`Model.kernels` then tells of kernel ``"coded"``.
            Grouped (also depthwise) convolutions and those of one input channel have few weights and stay resident, as
            do the weights of ``float_...`` operators. A weight whose codec cannot be decoded in parts is coded anew.
            Results do not depend on it.
        device: ``"cuda"`` or ``"cuda:N"``: an NVIDIA GPU computes; arrays stay those of numpy. Results are those of the
            CPU to the bit, but for ``float_...`` operators, which keep their bound. ``num_threads`` then serves loading
            alone, ``tune`` nothing, and ``kernels`` may hold ``"*"`` alone: ``"resident"`` (one launch, activations in
            the GPU's shared memory: small networks) or ``"steps"`` (a launch a step); without it the network's size
            decides. Nothing ever falls back to the CPU.

    Returns:
        A callable :class:`Model`.

    Raises:
        FormatError: the file breaks a rule of the format.
        OSError: it cannot be read.
        ValueError: ``num_threads``, ``weights`` or ``device`` out of range, or a kernel that is unknown or not for its
            node.
        RuntimeError: the CUDA device cannot be used: no CUDA engine in this build, no driver or too old a one, no such
            device, no code for its architecture, too little memory. The message names the cause.
    """
    _check_weights(weights, device)
    threads = max(1, num_threads)
    payloads: dict[int, tuple[str, NDArray[np.uint8]]] = {}
    if weights == "resident":
        graph = reader.read(path, sha256=sha256, num_threads=threads)
    else:
        graph, payloads = reader.read_coded(path, sha256=sha256, num_threads=threads)
    return Model(
        graph,
        num_threads=num_threads,
        nbytes=os.stat(path).st_size,
        max_activation_bytes=MAX_ACTIVATION_BYTES,
        kernels=kernels,
        tune=tune,
        device=device,
        payloads={index: _kept_payload(graph.nodes[index], *payloads[index]) for index in coded.wanted(graph, weights)},
    )


def _check_weights(weights: str | Mapping[str, str], device: str) -> None:
    if cuda.index_of(device) is not None and weights != "resident":
        raise ValueError(f"weights: on CUDA expected 'resident', got {weights!r}")


def _kept_payload(node: Node, codec: str, payload: NDArray[np.uint8]) -> coded.Payload:
    if codec in _core.codec_names(openable=True):
        return codec, payload.tobytes()
    return coded.encode(node.tensors["weight"])
