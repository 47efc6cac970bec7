"""The model zoo: networks of the compression literature, as plain `torch.nn` modules.

All of them can be traced with `torch.fx`. A new model is one function under `register_model` in a new file of this
folder, or anywhere else: `register_model` is public.
"""

from pqk_ext.models.count import count_macs, count_parameters
from pqk_ext.models.registry import create, input_shape, names, register_model

__all__ = ["count_macs", "count_parameters", "create", "input_shape", "names", "register_model"]
