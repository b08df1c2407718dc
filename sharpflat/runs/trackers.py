"""What can be watched while a run trains, beside every metric.

A tracker is `def name(look, *, ...)`, registered with `@tracker`. It returns an `Estimate`, or None
where it leaves something on disk instead.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat.batch import Batch
from sharpflat.config import Policy
from sharpflat.curvature.krylov import Krylov, hessian
from sharpflat.curvature.lanczos import RISK, leading, outermost_eigenvalue
from sharpflat.objective import Objective
from sharpflat.registry import tracker
from sharpflat.runs.snapshots import save_tree
from sharpflat.sharpness import Estimate
from sharpflat.training import Batches, Recipe, TrainState
from sharpflat.training.batching import epoch_order
from sharpflat.validation import Count, Positive

MOST_EXAMPLES = 10_000


@dataclass
class Look:
    """A run at a moment of its training.

    Attributes:
        config: its resolved config.
        folder: its record.
        recipe: model, loss and optimizer.
        data: the training set, on the device or in NumPy arrays.
        state: parameters, batch-norm averages, optimizer state.
        step: updates so far.
        carried: a vector `[p]` from the look before, zeros at first; what is put there is for the
            next one, and checkpoints keep it.
    """

    config: dict[str, Any]
    folder: Path
    recipe: Recipe
    data: Batch
    state: TrainState
    step: int
    carried: jax.Array

    def objective(self, examples: int, chunk: int, batch_norm: Policy) -> Objective:
        """The loss over the first `examples` (all, if there are fewer), at the trained parameters.

        An average of parameters that the training may keep beside them is not looked at.
        """
        part = jax.tree.map(jnp.asarray, self.data.first(min(examples, self.data.size)))
        return Objective(
            self.state.params, self.state.model_state, part, self.recipe.loss, self.recipe.model,
            batch_norm, min(chunk, part.size),
        )  # fmt: skip


@tracker
def top_eigenvalue(
    look: Look,
    *,
    examples: Count = 1000,
    chunk: Count = 1000,
    batch_norm: Policy = "batch",
    tolerance: Positive = 1e-3,
    max_steps: Count = 100,
    certify: bool = True,
) -> Estimate:
    """The largest eigenvalue of the loss's Hessian, certified or from a warm start.

    By default from a random start, until its certificate holds, as `hessian_top_eigenvalues` does.
    With `certify: false` Lanczos begins with the sum of the uppermost three Ritz vectors of the
    look before, mixed half and half with a random direction, so that an eigenvalue that has
    overtaken the largest is met, and ends at a small residual: about a third fewer products. That
    says that the number is an eigenvalue, not that it is the largest, and is rarely `converged`.
    (Up to a certificate a warm start was seen to need one to four products more than a random one.)

    Args:
        look: where the training is.
        examples: the first so many of the training set, or all if there are fewer.
        chunk: examples a pass.
        batch_norm: the policy, see `Objective.from_model`.
        tolerance: of ‖Hv − λv‖ / |λ|, and of what may lie further out.
        max_steps: Lanczos steps at most.
        certify: whether to go on until it is improbable that a larger one was missed.

    Returns:
        λmax; `converged` as for `hessian_top_eigenvalues`; details: `residual`, `missed`,
        `products`.

    Source: the edge of stability, Cohen et al. (2021), watches it so.
    """
    objective = look.objective(examples, chunk, batch_norm)
    key = jax.random.fold_in(jax.random.key(look.config["seed"]), look.step)
    # Two of these at one step share no random direction, for one starts where the other ended.
    own = repr((examples, chunk, batch_norm, tolerance, max_steps))
    key = jax.random.fold_in(key, zlib.crc32(own.encode()))
    start, risk = (None, RISK) if certify else (look.carried, 1.0)
    space = Krylov(hessian, objective, key, start=start)
    found = outermost_eigenvalue(space, tolerance=tolerance, max_steps=max_steps, risk=risk)
    if not certify:
        look.carried = leading(space, found.steps).astype(look.carried.dtype)
    held = found.residual <= tolerance and found.missed <= RISK
    details = {
        "residual": found.residual, "missed": found.missed, "products": found.products,
    }  # fmt: skip
    return Estimate(found.value, 0.0 if held else None, held, details)


@tracker
def batch_losses(look: Look) -> Estimate:
    """The loss of each batch of the epoch under way, or about to begin, at one and the same point.

    As an update sees it, batch statistics (ghost batches and parts of an accumulation included),
    but without dropout, augmentation and resampled labels.

    Args:
        look: where the training is.

    Returns:
        The mean over the batches, by examples; details: `losses` `[batches]`, in their order, and
        `standard_deviation` over the batches.
    """
    train, n = look.config["train"], look.data.size
    batches = Batches(n, train["batch_size"], train["drop_last"])
    order = epoch_order(look.config["seed"], look.step // batches.updates + 1, n)
    begin, losses, sizes = 0, list[np.ndarray](), list[int]()
    for size, count in batches.sizes:
        at_once = max(1, MOST_EXAMPLES // size)
        for first in range(0, count, at_once):
            number = min(at_once, count - first)
            indices = order[begin : begin + number * size]
            losses.append(_losses(look, indices).reshape(number, size).mean(axis=1))
            sizes += [size] * number
            begin += number * size
    each = np.concatenate(losses)
    mean = float(np.average(each, weights=sizes))
    return Estimate(mean, 0.0, True, {"losses": each, "standard_deviation": each.std()})


def _losses(look: Look, indices: jax.Array) -> np.ndarray:
    """Each example's, normalised as the training's passes do, `[examples]`."""
    on_device = isinstance(look.data.inputs, jax.Array)
    given: Any = indices if on_device else np.asarray(indices)
    part = look.data.take(given)
    passes = look.recipe.ghost or look.recipe.chunk or part.size
    objective = Objective(
        look.state.params, look.state.model_state, jax.tree.map(jnp.asarray, part),
        look.recipe.loss, look.recipe.model, "batch", min(passes, part.size),
    )  # fmt: skip
    return np.asarray(objective.losses(look.state.params), np.float64)


@tracker
def snapshots(look: Look) -> None:
    """Parameters, batch-norm averages and optimizer state, as `snapshots/<step>.npz`.

    Args:
        look: where the training is.
    """
    save_tree(look.folder / "snapshots" / f"{look.step}.npz", look.state)
