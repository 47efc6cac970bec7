"""The diagnosis of a whole prepared model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pqk_ext.diagnostics.activations import diagnose_activation
from pqk_ext.diagnostics.forward import important_weights, logits, named_layers, undisturbed, walk
from pqk_ext.diagnostics.measures import sqnr_db
from pqk_ext.diagnostics.records import ActivationDiagnosis, Agreement, Diagnosis
from pqk_ext.diagnostics.weights import diagnose_layer
from pqk_ext.distill.kl import kl
from pqk_ext.nn import ActivationQuantizer, Role
from pqk_ext.preparation import PreparedModel

__all__ = ["diagnose", "gradient_norms", "step_sizes"]


def diagnose(
    model: PreparedModel, x: Tensor, y: Tensor | None = None, *, start: Mapping[str, Tensor] | None = None
) -> Diagnosis:
    """Measures what pruning and quantization do to every layer, and leaves model and random generators as they were.

    Three forward passes of the batch in evaluation mode (batch norms use their running statistics). The same model and
    batch give the same figures.

    Args:
        model: a prepared model, in training or evaluation mode.
        x: input batch, float32.
        y: int64 labels ``(N,)``, for the accuracies of student and teacher.
        start: what :func:`step_sizes` gave when quantization began, for the drift.

    Raises:
        TypeError: ``model`` is not prepared.
        ValueError: an empty batch.
    """
    if not isinstance(model, PreparedModel):
        raise TypeError(f"model: expected one made by pqk_ext.prepare, got {type(model).__name__}")
    if x.shape[0] == 0:
        raise ValueError("x: expected a batch of at least one sample, got none")
    known = dict(start or {})
    controller = model.pqk
    with undisturbed(model):
        student, reference, activations = _activations(model, x, known)
        dense = logits(model, x, Role.FLOAT) if controller.phase == 1 and not controller.teaching else None
        agreement = _agreement(model, x, y, student) if controller.teaching else None
        layers = tuple(
            diagnose_layer(layer, name=name, start=known.get(f"{name}.weight_scale"))
            for name, layer in named_layers(model).items()
        )
        return Diagnosis(
            step=controller.global_step,
            phase=controller.phase,
            quantizing=controller.quantizing,
            samples=x.shape[0],
            sparsity=controller.sparsity,
            logits_sqnr_db=sqnr_db(reference, student),
            dense_logits_sqnr_db=None if dense is None else sqnr_db(dense, student),
            agreement=agreement,
            layers=layers,
            activations=tuple(activations),
        )


def _activations(
    model: PreparedModel, x: Tensor, start: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, list[ActivationDiagnosis]]:
    """Logits of the student and of the same pruned network in float, and what is between; block by block together."""
    found = []
    output = expected = x
    passes = walk(model, x, Role.STUDENT), walk(model, x, Role.FLOAT, weights=important_weights(model))
    for student, reference in zip(*passes, strict=True):
        key = student.block.quantizer
        output, expected = student.output, reference.output
        if key is None:
            continue
        quantizer = model.pqk_quantizers[key]
        assert isinstance(quantizer, ActivationQuantizer)
        found.append(
            diagnose_activation(
                quantizer,
                student.value,
                output,
                expected,
                name=key,
                op=student.block.op,
                layer=student.block.module,
                start=start.get(f"pqk_quantizers.{key}.scale"),
            )
        )
    return output, expected, found


def _agreement(model: PreparedModel, x: Tensor, y: Tensor | None, student: Tensor) -> Agreement:
    teacher = logits(model, x, Role.TEACHER)
    temperature = model.pqk.config.temperature
    classes = student.argmax(1), teacher.argmax(1)
    accuracies = [None if y is None else float((found == y).double().mean()) for found in classes]
    return Agreement(
        same_class=float((classes[0] == classes[1]).double().mean()),
        kl=float(kl(student, teacher, temperature)),
        temperature=temperature,
        student_accuracy=accuracies[0],
        teacher_accuracy=accuracies[1],
    )


@torch.no_grad()
def step_sizes(model: PreparedModel) -> dict[str, Tensor]:
    """Copies of all step sizes, by their names in the ``state_dict``: the ``start`` of :func:`diagnose`."""
    scales = {f"{name}.weight_scale": layer.weight_scale for name, layer in named_layers(model).items()}
    for key, quantizer in model.pqk_quantizers.items():
        assert isinstance(quantizer, ActivationQuantizer)
        scales[f"pqk_quantizers.{key}.scale"] = quantizer.scale
    return {name: scale.detach().clone() for name, scale in scales.items()}


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of each parameter's gradient, where there is one; call it after ``backward()``."""
    return {
        name: float(torch.linalg.vector_norm(parameter.grad))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
