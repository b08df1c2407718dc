"""The straight line between two minima."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective

QUANTITIES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def line(
    train: Objective,
    test: Objective,
    start: Any,
    end: Any,
    alphas: Sequence[float],
    on_point: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Loss and accuracy at (1 − α) `start` + α `end`: α = 0 is `start`, α = 1 is `end`.

    Under the policy `recalibrated` the batch-norm averages are re-estimated at every point over
    the training objective's data, and serve both splits.

    Args:
        train: the training objective.
        test: the same network on the test split.
        start: parameters.
        end: parameters.
        alphas: where; loss in nats and accuracy in [0, 1] are given for each.
        on_point: called with the number of points done.

    Returns:
        `alpha`, `train_loss`, `train_accuracy`, `test_loss`, `test_accuracy`, each `[points]`.

    Source: Goodfellow et al. (2015); Keskar et al. (2017), figure 3.
    """
    rows = []
    for done, alpha in enumerate(alphas, start=1):
        rows.append([float(value) for value in _point(train, test, start, end, alpha)])
        on_point(done)
    columns = np.array(rows).reshape(-1, len(QUANTITIES)).T
    return {"alpha": np.array(alphas), **dict(zip(QUANTITIES, columns, strict=True))}


@jax.jit
def _point(
    train: Objective, test: Objective, start: Any, end: Any, alpha: float
) -> tuple[jax.Array, ...]:
    params = trees.interpolate(start, end, alpha)
    state = train.state_at(params)
    return (*_both(train, params, state), *_both(test, params, state))


def _both(objective: Objective, params: Any, state: Any) -> tuple[jax.Array, jax.Array]:
    policy = "running" if objective.batch_norm == "recalibrated" else objective.batch_norm
    return replace(objective, model_state=state, batch_norm=policy).loss_and_accuracy(params)
