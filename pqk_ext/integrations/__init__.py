"""Adapters to other training libraries: ``lightning``, ``transformers``, ``accelerate``.

Each is a module of its own that imports its library; nothing else in the package does. All of them let the phases
follow the optimizer (:func:`pqk_ext.step_with`), so ``model.pqk.step()`` is never called by hand.
"""
