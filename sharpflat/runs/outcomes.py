"""What a metric's outcome becomes in a line of a record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sharpflat.runs import files
from sharpflat.sharpness import Measured

MOST_NUMBERS = 1000


def fields(folder: Path, outcome: Measured) -> dict[str, Any]:
    """Value, error bar, certificate, error, seconds and details; large details go to `folder`."""
    estimate = outcome.estimate
    found: dict[str, Any] = {"value": None, "standard_error": None, "converged": False}
    if estimate is not None:
        found |= {name: getattr(estimate, name) for name in found}
    details = {} if estimate is None else estimate.details
    return {
        **found,
        "error": outcome.reason,
        "seconds": round(outcome.seconds, 3),
        "details": _small(folder, {name: np.asarray(value) for name, value in details.items()}),
    }


def _small(run: Path, details: dict[str, np.ndarray]) -> dict[str, Any]:
    """Details for a JSON line: of more than 1,000 numbers the largest go to `arrays/`."""
    small: dict[str, Any] = {}
    room = MOST_NUMBERS
    for name, array in sorted(details.items(), key=lambda item: item[1].size):
        if array.size <= room:
            small[name], room = array, room - array.size
            continue
        folder = files.make_folder(run / "arrays")
        file = folder / f"{files.digest(array)}.npy"
        with files.replacing(file) as temporary:
            np.save(temporary, array, allow_pickle=False)
        small[name] = {"file": f"arrays/{file.name}", "shape": list(array.shape)}
    return small
