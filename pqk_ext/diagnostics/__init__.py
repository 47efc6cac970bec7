"""What happens inside a network while it is pruned and quantized: measured on a batch, changing nothing.

:func:`diagnose` gives everything as one :class:`Diagnosis`; the functions that it is made of are public too.
"""

from __future__ import annotations

from pqk_ext.diagnostics.activations import diagnose_activation
from pqk_ext.diagnostics.diagnose import diagnose, gradient_norms, step_sizes
from pqk_ext.diagnostics.forward import (
    Step,
    important_weights,
    logits,
    named_layers,
    quantized_weights,
    undisturbed,
    walk,
)
from pqk_ext.diagnostics.measures import code_counts, entropy_bits, sqnr_db
from pqk_ext.diagnostics.records import ActivationDiagnosis, Agreement, Diagnosis, LayerDiagnosis
from pqk_ext.diagnostics.weights import diagnose_layer, weight_codes

__all__ = [
    "ActivationDiagnosis",
    "Agreement",
    "Diagnosis",
    "LayerDiagnosis",
    "Step",
    "code_counts",
    "diagnose",
    "diagnose_activation",
    "diagnose_layer",
    "entropy_bits",
    "gradient_norms",
    "important_weights",
    "logits",
    "named_layers",
    "quantized_weights",
    "sqnr_db",
    "step_sizes",
    "undisturbed",
    "walk",
    "weight_codes",
]
