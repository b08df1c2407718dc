"""Intervals that cover: value ± 1.96 standard errors holds the truth in 90 to 99 % of 200 seeds."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import sharpflat as sf

SEEDS = 200
MODULES = sorted(
    module.name for module in pkgutil.iter_modules([str(Path(__file__).parent / "cases")])
)
CASES = [case for name in MODULES for case in importlib.import_module(f"cases.{name}").CASES]


def covered(case, seeds=SEEDS):
    """Fraction of seeds whose interval holds the truth, mean value, mean standard error.

    `metric.detail` is that number among a metric's details, with its own standard error.
    """
    objective = case.objective()
    metric, _, detail = case.metric.partition(".")
    spec = {metric: case.arguments}
    found = [sf.measure(objective, spec, seed=seed, **case.inputs) for seed in range(seeds)]
    pairs = [
        (e.details[detail], e.details[f"{detail}_standard_error"])
        if detail
        else (e.value, e.standard_error)
        for e in found
    ]
    values, errors = np.array(pairs, dtype=np.float64).T
    inside = np.abs(values - case.truth) <= 1.96 * errors
    return inside.mean(), values.mean(), errors.mean()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.metric}-{case.problem}")
def test_interval_covers_the_truth(case):
    fraction, value, error = covered(case)
    assert 0.90 <= fraction <= 0.99, (fraction, value, case.truth, error)
