"""Metrics' outcomes, and what they become in a line of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sharpflat.objective import Objective
from sharpflat.registry import metrics
from sharpflat.runs import files
from sharpflat.sharpness import Measured, check, measure_each
from sharpflat.validation import InputError

MOST_NUMBERS = 1000


def of_one_objective(
    objective: Callable[[], Objective],
    asked: Sequence[tuple[str, dict[str, Any]]],
    inputs: Callable[[str], Any],
    seed: int,
    before: Callable[[str], None] = lambda label: None,
) -> Iterator[tuple[int, Measured]]:
    """Measure metrics that share their passes; what cannot be measured is an error of its own.

    Args:
        objective: makes it.
        asked: names and arguments.
        inputs: makes what metrics are handed over (`initial_params`, ...), by its name.
        seed: of the measurements.
        before: told which one is at work.

    Returns:
        The place in `asked` of each, and its outcome; first of those that cannot be measured.
    """
    ready, given = list[int](), dict[str, Any]()
    try:
        made = objective()
    except Exception as error:
        yield from ((place, failed(*one, error)) for place, one in enumerate(asked))
        return
    for place, (name, arguments) in enumerate(asked):
        try:
            own = {needed: inputs(needed) for needed in metrics[name].inputs}
            check(metrics[name], made, {**arguments, **own})
        except Exception as error:
            yield place, failed(name, arguments, error)
        else:
            ready, given = [*ready, place], {**given, **own}
    left = iter(ready)
    try:
        for outcome in measure_each(made, [asked[place] for place in ready], seed, given, before):
            yield next(left), outcome
    except InputError as error:  # of all of them, as parameters that are not finite
        yield from ((place, failed(*asked[place], error)) for place in left)


def failed(name: str, arguments: dict[str, Any], error: Exception) -> Measured:
    """The outcome of what was not measured at all."""
    return Measured(name, arguments, None, error, 0.0)


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
