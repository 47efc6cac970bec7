"""How a run can be started again: its command line or call, and its settings."""

from __future__ import annotations

import shlex
from typing import Any

import yaml  # type: ignore[import-untyped]

from pqk_ext.report.run import Run

__all__ = ["command", "settings_yaml"]


def command(run: Run) -> str:
    """A shell line for a run of ``pqk train``, a call for one of ``fit``, or what is missing for either."""
    settings = run.facts.get("settings")
    if not settings:
        return "Not known before the first checkpoint."
    return _shell_line(run, settings) if run.described else _call(run, settings)


def _shell_line(run: Run, settings: dict[str, Any]) -> str:
    described, options = run.described, run.described.get("options", {})
    words = ["pqk", "train", "--data", described.get("data", "?"), "--model", described.get("model", "?")]
    if options.get("pretrained"):
        words.append("--pretrained")
    if run.config:
        words += ["--config", "pqk.yaml"]
    else:
        words += ["--epochs", settings["total_steps"] // max(1, settings["steps_per_epoch"])]
    words += ["--run-dir", run.path]
    if settings.get("optimizer"):
        words += ["--optimizer", str(settings["optimizer"]).lower()]
    words += ["--batch-size", settings["batch_size"], "--lr", settings["lr"]]
    words += ["--weight-decay", settings["weight_decay"], "--momentum", settings["momentum"]]
    words += ["--seed", settings["seed"]]
    if "diagnose_every" in settings:
        words += ["--diagnose-every", settings["diagnose_every"]]
    return shlex.join(str(word) for word in words)


def _call(run: Run, settings: dict[str, Any]) -> str:
    config = ", ".join(f"{name}={value!r}" for name, value in (run.config or {}).items())
    first = f"pqk_ext.fit(model, train, val, {f'PQKConfig({config})' if config else None}, {str(run.path)!r}"
    shown = ("batch_size", "lr", "phase2_lr_factor", "weight_decay", "momentum", "seed", "log_every", "diagnose_every")
    words = [f"{name}={settings[name]!r}" for name in shown if name in settings]
    words += [
        f"{name}=<{settings[name]}>"
        for name in ("optimizer", "schedule", "augment")
        if settings.get(name) not in (None, "cosine")
    ]
    if not config:
        words.insert(0, f"epochs={settings['total_steps'] // max(1, settings['steps_per_epoch'])}")
    return f"{first}, {', '.join(words)})"


def settings_yaml(run: Run) -> str:
    """All settings of PQK with their values, as the file that ``--config`` takes; empty for a float run."""
    return yaml.safe_dump(run.config, sort_keys=False) if run.config else ""
