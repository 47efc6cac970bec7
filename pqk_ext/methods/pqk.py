"""PQK: pruned and quantized, then taught by the weights that were pruned away."""

from __future__ import annotations

from torch import nn

from pqk_ext.methods._registry import method
from pqk_ext.methods.run import Run

__all__ = ["pqk"]


@method()
def pqk(run: Run) -> dict[str, nn.Module]:
    """Kim, Chang and Kwak, "PQK: Model Compression via Pruning, Quantization, and Knowledge Distillation", 2021.

    Certain, from the abstract: two phases, the teacher made of the pruned network and its pruned-away weights, in the
    same tensors, never trained beforehand. Reconstructed, from the same author's later work and by choice: everything
    in ``PQKConfig`` that is a switch. Not of the paper: ``pqk.teacher_start`` below 1, a teacher that begins
    while phase 1 still prunes. ``pqk.teacher: false`` is the control with as many steps and no teacher.
    """
    model = run.prepare(run.network())
    return {"pqk": run.fit("student", model)}
