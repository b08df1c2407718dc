"""sharpflat: a laboratory for sharp and flat minima.

The public names are a lazy table (PEP 562): `import sharpflat` does not import JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Batch": "sharpflat.batch",
    "Estimate": "sharpflat.sharpness",
    "InputError": "sharpflat.validation",
    "Model": "sharpflat.networks",
    "Objective": "sharpflat.objective",
    "Run": "sharpflat.runs",
    "Count": "sharpflat.validation",
    "Finite": "sharpflat.validation",
    "Decay": "sharpflat.validation",
    "Fraction": "sharpflat.validation",
    "Location": "sharpflat.validation",
    "NaturalNumber": "sharpflat.validation",
    "NonNegative": "sharpflat.validation",
    "Positive": "sharpflat.validation",
    "PositiveDecay": "sharpflat.validation",
    "dataset": "sharpflat.registry",
    "datasets": "sharpflat.data",
    "figure": "sharpflat.registry",
    "figures": "sharpflat.plots",
    "invariance_table": "sharpflat.audit",
    "load_config": "sharpflat.runs",
    "load_runs": "sharpflat.runs",
    "map_draws": "sharpflat.sharpness",
    "measure": "sharpflat.sharpness",
    "metric": "sharpflat.registry",
    "metrics": "sharpflat.sharpness",
    "model": "sharpflat.registry",
    "models": "sharpflat.networks",
    "optimizer": "sharpflat.registry",
    "optimizers": "sharpflat.training",
    "precision_table": "sharpflat.audit",
    "run": "sharpflat.runs",
    "schedule": "sharpflat.registry",
    "schedules": "sharpflat.training",
    "train": "sharpflat.runs",
}
_ROOMS = ("landscape", "statistics", "trees")

__all__ = ["__version__", *sorted(_PUBLIC), *_ROOMS]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sharpflat.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sharpflat' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
