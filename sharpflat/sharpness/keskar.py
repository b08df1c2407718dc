"""The sharpness of Keskar et al. (2017), Metric 2.1: the largest rise of the loss in a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jax.flatten_util import ravel_pytree

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, above_rounding
from sharpflat.sharpness.subsets import exact_gradient
from sharpflat.validation import Count, InputError, Positive

TOLERANCE = 0.01


def _cost(examples: int, arguments: Mapping[str, Any]) -> float:
    """A few evaluations more than iterations from each start, in each subspace."""
    solves = len(arguments["starts"]) * (arguments["draws"] if arguments["subspace"] else 1)
    return solves * (1.3 * arguments["iterations"] + 2)


def _check(objective: Objective, arguments: Mapping[str, Any]) -> None:
    if not arguments["starts"]:
        raise InputError("starts: at least one start is needed")
    size = trees.size(objective.params)
    if (arguments["subspace"] or 0) > size:
        raise InputError(f"subspace: {arguments['subspace']} is above the {size} parameters")


@metric(cost=_cost, checks=(_check,))
def keskar_sharpness(
    objective: Objective,
    key: jax.Array,
    *,
    epsilon: Positive = 1e-3,
    subspace: Count | None = None,
    draws: Count = 3,
    columns: Literal["gaussian", "unit"] = "gaussian",
    scale: Positive = 1.0,
    solver: Literal["lbfgsb", "ascent"] = "lbfgsb",
    iterations: Count = 10,
    starts: tuple[Literal["zero", "sign", "random"], ...] = ("zero", "sign", "random"),
) -> Estimate:
    """φ = 100 · (max_{z ∈ C} f(x + A z) − f(x)) / (1 + f(x)), in percent.

    C = { z : |z_i| ≤ ε (|(A⁺x)_i| + 1) }, with A = I in the full space, or p × `subspace` random.
    The maximum is found inexactly: every number here is a lower bound of φ. It is the best point
    seen from any start, x itself included, so that φ ≥ 0. A solver that starts where the gradient
    vanishes stays there: the starts `sign` and `random` are vertices of the box for that reason.

    Args:
        objective: f, at its parameters x.
        key: PRNG key of A and of the start `random`.
        epsilon: ε, relative size of the box.
        subspace: columns of A; None for the full space.
        draws: independent A's; the value is their mean. Not used in the full space.
        columns: A's entries are independent N(0, 1) (`gaussian`), or each such column is divided
            by its norm (`unit`). The paper does not say; A A⁺ is the same projection either way,
            but the box is ‖column‖ times as large in parameter space.
        scale: factor on A.
        solver: `lbfgsb`, SciPy's L-BFGS-B with tolerances of zero, as in the paper; or `ascent`,
            steps along the gradient's sign, halved where f does not rise.
        iterations: of L-BFGS-B (10 in the paper), or steps of `ascent`.
        starts: `zero` is x; `sign` the vertex along the gradient's sign (a random sign where the
            gradient is zero); `random` a random vertex.

    Returns:
        `standard_error` over draws of A alone; None in the full space, where the maximisation's
        error has one sign and is not random, or for one draw. `converged` is a local certificate:
        f rose, by more than its rounding can have moved by 1 %; at the best point no step in the
        box promises, to first order, more than 1 % of the rise; and the starts from which f rose
        agree on it within 1 %. Never under `recalibrated` batch norm, whose gradients hold the
        statistics fixed. Details, a row a draw: `phi_<start>`, `evaluations_<start>` (of f with its
        gradient), `first_order_gap` (in units of φ), `projected_gradient` = max_i |P(z + ∇f)_i −
        z_i|, and `loss` = f(x). Where f is not finite somewhere in the box, the value is NaN.

    Raises:
        InputError: more columns than parameters, no starts.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 50 * jnp.sum(w**2), jnp.zeros(2), (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(bowl, "keskar_sharpness", epsilon=0.1).value, 3)  # 100 · 50 · 2 · 0.1²
        100.0

    Source: Keskar et al. (2017), section 2.2.1, equations (3) and (4).
    """
    here = objective.loss(objective.params)
    loss = float(here)
    maximise = {"lbfgsb": _lbfgsb, "ascent": _ascent}[solver]
    rows = []
    for draw in jax.random.split(key, draws if subspace else 1):
        of_basis, of_start = jax.random.split(draw)
        basis = _basis(objective, of_basis, subspace, columns, scale) if subspace else None
        box = _Box(objective, basis, np.asarray(_bound(objective, basis, epsilon)))
        found = [maximise(box, _start(box, name, of_start), iterations) for name in starts]
        rows.append(_row(box, loss, starts, found))
    details = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    phi = details.pop("phi")
    seen = above_rounding(phi * (1 + loss) / 100, loss, here.dtype, TOLERANCE)
    held = (certified(phi, details, starts) & seen).all()
    converged = exact_gradient(objective) and bool(held)
    error = float(phi.std(ddof=1) / np.sqrt(len(phi))) if len(phi) > 1 else None
    return Estimate(float(phi.mean()), error, converged, {**details, "loss": np.float64(loss)})


def certified(phi: np.ndarray, details: dict[str, np.ndarray], starts: Sequence[str]) -> np.ndarray:
    """For each draw whether the local certificate holds; see `keskar_sharpness`."""
    by_start = np.array([details[f"phi_{name}"] for name in starts])
    agree = ((by_start <= 0) | (by_start >= (1 - TOLERANCE) * phi)).all(axis=0)
    return (phi > 0) & (details["first_order_gap"] <= TOLERANCE * phi) & agree


class _Box:
    """f(x + A z) over |z_i| ≤ bound_i, to be maximised."""

    def __init__(self, objective: Objective, basis: jax.Array | None, bound: np.ndarray) -> None:
        self.objective, self.basis, self.bound = objective, basis, bound.astype(np.float64)

    def value_and_grad(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """f and ∂f/∂z at z = `point`."""
        value, gradient = _value_and_grad(self.objective, self.basis, jnp.asarray(point))
        return float(value), np.asarray(gradient, dtype=np.float64)

    def clip(self, point: np.ndarray) -> np.ndarray:
        return np.clip(point, -self.bound, self.bound)


class _Found(NamedTuple):
    """The best point a solver saw."""

    point: np.ndarray
    value: float
    gradient: np.ndarray
    evaluations: int
    finite: bool


class _Best:
    """f, counted, with the best point so far remembered."""

    def __init__(self, box: _Box) -> None:
        self.box, self.evaluations, self.finite = box, 0, True
        self.found: _Found | None = None

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self.box.value_and_grad(point)
        self.evaluations += 1
        self.finite &= bool(np.isfinite(value))
        if self.found is None or value > self.found.value:
            self.found = _Found(point.copy(), value, gradient, 0, True)
        return value, gradient

    def result(self) -> _Found:
        assert self.found is not None
        return self.found._replace(evaluations=self.evaluations, finite=self.finite)


def _lbfgsb(box: _Box, start: np.ndarray, iterations: int) -> _Found:
    best = _Best(box)

    def negated(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = best(point)
        return -value, -gradient

    bounds = scipy.optimize.Bounds(-box.bound, box.bound)
    # With any positive tolerance it would stop at once where the gradient has all but vanished.
    options = {"maxiter": iterations, "ftol": 0.0, "gtol": 0.0}
    scipy.optimize.minimize(
        negated, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )
    return best.result()


def _ascent(box: _Box, start: np.ndarray, iterations: int) -> _Found:
    best, step = _Best(box), 1.0
    best(start)
    for _ in range(iterations):
        here = best.result()
        point = box.clip(here.point + step * box.bound * np.sign(here.gradient))
        if np.array_equal(point, here.point):
            break
        value, _ = best(point)
        if not value > here.value:
            step /= 2
    return best.result()


def _start(box: _Box, name: str, key: jax.Array) -> np.ndarray:
    if name == "zero":
        return np.zeros_like(box.bound)
    key = jax.random.fold_in(key, name == "sign")
    signs = np.asarray(jax.random.rademacher(key, box.bound.shape, dtype=jnp.float32))
    if name == "sign":
        _, gradient = box.value_and_grad(np.zeros_like(box.bound))
        signs = np.where(gradient == 0, signs, np.sign(gradient))
    return box.bound * signs


def _row(box: _Box, loss: float, starts: Sequence[str], found: Sequence[_Found]) -> dict[str, Any]:
    """φ by start and for the best of them, with its certificate."""
    best = max(found, key=lambda solution: solution.value)
    to_phi = 100 / (1 + loss)
    reach = np.sum(np.abs(best.gradient) * box.bound - best.gradient * best.point)
    finite = all(solution.finite for solution in found)
    row: dict[str, Any] = {"phi": max(0.0, to_phi * (best.value - loss)) if finite else np.nan}
    for name, solution in zip(starts, found, strict=True):
        row[f"phi_{name}"] = to_phi * (solution.value - loss)
        row[f"evaluations_{name}"] = solution.evaluations + (name == "sign")
    row["first_order_gap"] = to_phi * reach
    row["projected_gradient"] = np.max(np.abs(box.clip(best.point + best.gradient) - best.point))
    return row


@jax.jit
def _value_and_grad(
    objective: Objective, basis: jax.Array | None, point: jax.Array
) -> tuple[jax.Array, jax.Array]:
    flat, unravel = ravel_pytree(objective.params)
    point = point.astype(flat.dtype)
    step = point if basis is None else point @ basis
    value, gradient = objective.value_and_grad(unravel(flat + step))
    gradient = ravel_pytree(gradient)[0]
    return value, gradient if basis is None else basis @ gradient


@jax.jit
def _bound(objective: Objective, basis: jax.Array | None, epsilon: float) -> jax.Array:
    """ε (|(A⁺x)_i| + 1), with A⁺x from the normal equations."""
    flat, _ = ravel_pytree(objective.params)
    coordinates = flat if basis is None else jnp.linalg.solve(basis @ basis.T, basis @ flat)
    return epsilon * (jnp.abs(coordinates) + 1)


def _basis(
    objective: Objective, key: jax.Array, count: int, columns: str, scale: float
) -> jax.Array:
    """Aᵀ, `[count, p]`."""
    flat, _ = ravel_pytree(objective.params)
    rows = jax.random.normal(key, (count, flat.size), flat.dtype)
    if columns == "unit":
        rows = rows / jnp.linalg.norm(rows, axis=1, keepdims=True)
    return scale * rows
