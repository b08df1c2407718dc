"""How much the examples' gradients differ, and how much curvature their differences see."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import trees
from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, needs_single_examples
from sharpflat.sharpness.gradient_norms import held_fixed, scaled
from sharpflat.validation import Count

EXAMPLE_PASS = 12.0
"""Gradients' worth of a pass over the examples' own, measured on a CPU for a wide perceptron."""


class ExampleGradients(NamedTuple):
    """The examples' gradients g_i in numbers, with their mean ḡ.

    Attributes:
        mean: ḡ, a tree like the parameters.
        mean_square: ‖ḡ‖².
        squares: ‖g_i‖², `[n]`.
        deviations: ‖g_i − ḡ‖², `[n]`.
        slopes: (g_i − ḡ)·ḡ, `[n]`.
        resolved: whether ‖ḡ‖ stands above rounding, 10 ε times the root mean square of ‖g_i‖.
        apart: whether the root mean square of ‖g_i − ḡ‖ does.
    """

    mean: Any
    mean_square: float
    squares: np.ndarray
    deviations: np.ndarray
    slopes: np.ndarray
    resolved: bool
    apart: bool


def example_gradients(objective: Objective, key: jax.Array) -> ExampleGradients:
    """One pass over the examples' gradients for all that need it, through `objective.shared`."""
    mean = objective.value_and_grad(objective.params)[1]
    unit, largest = scaled(mean)
    rows = objective.map_gradients(_distance, objective.params, mean)
    with np.errstate(invalid="ignore", over="ignore"):  # ends up not finite, and says so
        deviations = np.asarray(rows, np.float64) ** 2
        mean_square = np.float64(_norm(mean)) ** 2
        slopes = np.asarray(slopes_along(objective, unit), np.float64) * float(largest)
        slopes = slopes - mean_square
        squares = np.maximum(deviations + 2 * slopes + mean_square, 0)
    rounding = (10 * float(jnp.finfo(rows.dtype).eps)) ** 2 * squares.mean()
    above = bool(mean_square > rounding), bool(deviations.mean() > rounding)
    return ExampleGradients(mean, float(mean_square), squares, deviations, slopes, *above)


@jax.jit
def slopes_along(objective: Objective, direction: Any) -> jax.Array:
    """∇ℓ_i · direction for each example, `[n]`; of a network by one forward pass."""
    params = objective.params
    if objective.model is None:
        return objective.map_gradients(trees.vdot, params, direction)
    return jax.jvp(objective.losses, (params,), (direction,))[1]


def _distance(gradient: Any, mean: Any) -> jax.Array:
    return _norm(trees.sub(gradient, mean))


@jax.jit
def _norm(tree: Any) -> jax.Array:
    """‖tree‖, of numbers too small or too large to be squared, too."""
    unit, largest = scaled(tree)
    return largest * trees.norm(unit)


@jax.jit
def _square(tree: Any) -> jax.Array:
    return trees.vdot(tree, tree)


def _over(above: float, below: float) -> float:
    """`above / below`, infinite or NaN where `below` is zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(above) / np.float64(below))


@metric(cost=lambda n, a: 2 + EXAMPLE_PASS, checks=(needs_single_examples,))
def gradient_covariance_trace(objective: Objective, key: jax.Array) -> Estimate:
    """tr Σ, Σ = (1/n) Σ_i (g_i − ḡ)(g_i − ḡ)ᵀ, the total variance of one example's gradient.

    ḡ = ∇L is the mean of the examples' gradients g_i. This is exact for the given examples: a
    batch of b drawn from them with replacement has a gradient of covariance Σ/b. Units: squared
    loss per squared parameter.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0; `converged` if finite. Details: `unbiased`, with 1/(n − 1), for the
        distribution that the examples came from (NaN for one example); `mean_square_gradient` =
        (1/n) Σ_i ‖g_i‖²; `squared_gradient_norm` = ‖ḡ‖².

    Raises:
        InputError: batch norm under `batch`, where an example has no gradient of its own.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.mean((w - batch.inputs) ** 2), jnp.zeros(()),
        ...     (jnp.array([1.0, 3.0]), jnp.zeros(2)))
        >>> sf.measure(bowl, "gradient_covariance_trace").value
        1.0

    Source: McCandlish et al. (2018), section 2.2.
    """
    found = objective.shared(example_gradients, key)
    value, n = float(found.deviations.mean()), len(found.deviations)
    details = {
        "unbiased": _over(found.deviations.sum(), n - 1),
        "mean_square_gradient": found.squares.mean(),
        "squared_gradient_norm": found.mean_square,
    }
    return Estimate(value, 0.0, bool(np.isfinite(value)), details)


@metric(cost=lambda n, a: 2 + EXAMPLE_PASS, checks=(needs_single_examples,))
def gradient_noise_scale(objective: Objective, key: jax.Array) -> Estimate:
    """B_simple = tr Σ / ‖ḡ‖², the batch size at which a gradient's noise equals its signal.

    The value takes the given examples for the whole population, as an optimizer that draws its
    batches from them does: Σ with 1/n and ḡ = ∇L, exactly. At a minimum ḡ vanishes and the noise
    scale is infinite. Units: examples.

    The paper estimates the population's scale from gradients at two batch sizes. `population` is
    its estimate S/|G|² for the sizes 1 and n, with all n examples as the single ones:
    |G|² = (n ‖ḡ‖² − ‖g‖²)/(n − 1) and S = (‖g‖² − ‖ḡ‖²)/(1 − 1/n), ‖g‖² = (1/n) Σ_i ‖g_i‖², each
    unbiased where the parameters were not fitted to these examples. `population_low` to
    `population_high` is Fieller's interval of it (95 %, of the draw of the examples), with
    covariances by the jackknife; its upper end is infinite where the examples cannot tell |G|² from
    zero. `population` is NaN where |G|² ≤ 0; the interval too where that is beyond chance, as at a
    minimum that was fitted to the examples.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0. `converged` if ‖ḡ‖ stands above rounding: it exceeds 10 ε times the
        root mean square of ‖g_i‖. Details: `covariance_trace` = tr Σ, `squared_gradient_norm` =
        ‖ḡ‖², and of the population `population`, `population_low`, `population_high`,
        `population_covariance_trace` = S, `population_squared_gradient_norm` = |G|².

    Raises:
        InputError: batch norm under `batch`, where an example has no gradient of its own.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.mean((w - batch.inputs) ** 2), jnp.zeros(()),
        ...     (jnp.array([1.0, 3.0]), jnp.zeros(2)))
        >>> sf.measure(bowl, "gradient_noise_scale").value  # tr Σ = 1, ‖ḡ‖² = 4
        0.25

    Source: McCandlish et al. (2018), equation (2.9) and appendix A.1. The paper gives no interval;
    this one is after Fieller (1954).
    """
    found = objective.shared(example_gradients, key)
    trace = float(found.deviations.mean())
    value = _over(trace, found.mean_square)
    details = {"covariance_trace": trace, "squared_gradient_norm": found.mean_square}
    details |= _population(found)
    return Estimate(value, 0.0, bool(np.isfinite(value)) and found.resolved, details)


def _population(found: ExampleGradients) -> dict[str, float]:
    """S, |G|², their ratio and its interval; all NaN for fewer than three examples."""
    n, deviations = len(found.deviations), found.deviations
    if n < 3 or not np.isfinite(found.squares).all():
        names = ("", "_low", "_high", "_covariance_trace", "_squared_gradient_norm")
        return {f"population{name}": np.nan for name in names}
    noise = deviations.sum() / (n - 1)
    signal = found.mean_square - noise / n
    without = (deviations.sum() - deviations * n / (n - 1)) / (n - 2)
    mean_square = found.mean_square - 2 * found.slopes / (n - 1) + deviations / (n - 1) ** 2
    covariance = (n - 1) ** 2 / n * np.cov(without, mean_square - without / (n - 1))
    low, high = _fieller(noise, signal, covariance)
    return {
        "population": _over(noise, signal) if signal > 0 else np.nan,
        "population_low": low,
        "population_high": high,
        "population_covariance_trace": noise,
        "population_squared_gradient_norm": signal,
    }


def _fieller(above: float, below: float, covariance: np.ndarray) -> tuple[float, float]:
    """The ratios r ≥ 0 at which above − r below is within 1.96 of its standard errors of zero.

    NaN where there is none, `below` being negative beyond its errors.
    """
    a, b, c = (
        product - 1.96**2 * covariance[i, j]
        for product, i, j in ((below**2, 1, 1), (above * below, 0, 1), (above**2, 0, 0))
    )
    if a > 0 and below < 0:
        return np.nan, np.nan
    root = np.sqrt(max(b**2 - a * c, 0.0))
    low = _over(c, b + root) if c > 0 else 0.0
    return low, _over(b + root, a) if a > 0 else np.inf


@metric(cost=lambda n, a: 2 + EXAMPLE_PASS, checks=(needs_single_examples,))
def gradient_diversity(objective: Objective, key: jax.Array) -> Estimate:
    """Σ_i ‖g_i‖² / ‖Σ_i g_i‖², how far the examples' gradients g_i point in different ways.

    1/n if they are all equal, 1 if they are orthogonal, infinite where they cancel. Without units.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0. `converged` if ‖Σ g_i‖ stands above rounding: its mean ‖ḡ‖ exceeds
        10 ε times the root mean square of ‖g_i‖. Details: `batch_size_bound` = n times the value,
        the batch size up to which SGD converges in as many examples as one by one.

    Raises:
        InputError: batch norm under `batch`, where an example has no gradient of its own.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> line = sf.Objective.from_function(
        ...     lambda w, batch: jnp.mean(batch.inputs @ w), jnp.zeros(2),
        ...     (jnp.diag(jnp.array([3.0, 4.0])), jnp.ones(2)))
        >>> sf.measure(line, "gradient_diversity").value
        1.0

    Source: Yin et al. (2018), definition 1 (and definition 2, the bound).
    """
    found = objective.shared(example_gradients, key)
    bound = _over(found.squares.mean(), found.mean_square)
    converged = bool(np.isfinite(bound)) and found.resolved
    return Estimate(bound / len(found.squares), 0.0, converged, {"batch_size_bound": bound})


@metric(
    cost=lambda n, a: 2 + EXAMPLE_PASS + a["draws"] * (4 + 1 / n), checks=(needs_single_examples,)
)
def noise_curvature_alignment(
    objective: Objective, key: jax.Array, *, draws: Count = 30
) -> Estimate:
    """[tr(HΣ) / tr Σ] / [tr H / p]: the curvature gradient noise sees, over what isotropic would.

    H = ∇²L, Σ the covariance of the examples' gradients, p the number of parameters. 1 for noise
    of no preferred direction, p if all noise lies along the only curved one. Without units.

    tr(HΣ)/tr Σ is the mean of dᵀHd/‖d‖² over examples drawn with probability in proportion to
    ‖d‖², d = g_i − ḡ: without bias, and no term exceeds λmax however few examples carry the noise.
    tr H is the mean of zᵀHz over Rademacher vectors z.

    Args:
        objective: where to measure.
        key: PRNG key of the examples and the vectors z.
        draws: of each of the two.

    Returns:
        `standard_error` by the delta method from those of the two means. `converged` if mean ± 1.96
        standard errors of tr H does not hold zero. Details: `noise_weighted_curvature` =
        tr(HΣ)/tr Σ and `mean_eigenvalue` = tr H / p, each with its `..._standard_error` (NaN for
        one draw). The value is NaN where all examples have the same gradient, to rounding.

    Raises:
        InputError: batch norm under `batch`, where an example has no gradient of its own.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> h, data = jnp.array([3.0, 1.0]), (jnp.array([[1.0, 0.0], [2.0, 0.0]]), jnp.ones(2))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, b: 0.5 * jnp.mean((w[None] - b.inputs) ** 2 @ h), jnp.zeros(2), data)
        >>> round(sf.measure(bowl, "noise_curvature_alignment").value, 4)  # 3 over (3 + 1) / 2
        1.5

    Source: Zhu et al. (2019), section 3, where Tr(HΣ) is compared with that of isotropic noise of
    the same trace; the sampling is ours.
    """
    found = objective.shared(example_gradients, key)
    total = found.deviations.sum()
    if not (found.apart and total < np.inf):
        return Estimate(float("nan"), None, False, {"covariance_trace": total})
    weights = jnp.asarray(found.deviations / total)
    along_noise, of_probes = _curvatures(objective, key, found.mean, weights, draws)
    noise = Estimate.from_samples(along_noise)
    mean = Estimate.from_samples(np.asarray(of_probes, np.float64) / trees.size(objective.params))
    return _quotient(noise, mean)


def _quotient(above: Estimate, below: Estimate) -> Estimate:
    value = _over(above.value, below.value)
    details = {"noise_weighted_curvature": above.value, "mean_eigenvalue": below.value}
    errors = [np.nan if e.standard_error is None else e.standard_error for e in (above, below)]
    details |= {f"{name}_standard_error": e for name, e in zip(list(details), errors, strict=True)}
    spread = float(np.hypot(errors[0], value * errors[1]))
    error = _over(spread, abs(below.value)) if np.isfinite(spread) else None
    converged = bool(np.isfinite(value)) and abs(below.value) > 1.96 * errors[1]
    return Estimate(value, error, converged, details)


@functools.partial(jax.jit, static_argnames="draws")
def _curvatures(
    objective: Objective, key: jax.Array, mean: Any, weights: jax.Array, draws: int
) -> tuple[jax.Array, jax.Array]:
    """dᵀHd/‖d‖² for examples drawn by `weights`, and zᵀHz, `[draws]` each."""
    fixed = held_fixed(objective)
    params = fixed.params
    product = fixed.linearize_hvp(params)

    def of_example(index: jax.Array) -> jax.Array:
        gradient = fixed.subset(index[None]).value_and_grad(params)[1]
        deviation, _ = scaled(trees.sub(gradient, mean))
        return trees.vdot(deviation, product(deviation)) / _square(deviation)

    def of_probe(key: jax.Array) -> jax.Array:
        signs = trees.random_like(key, params, sampler=jax.random.rademacher)
        return trees.vdot(signs, product(signs))

    of_examples, of_probes = jax.random.split(key)
    indices = jax.random.choice(of_examples, objective.data.size, (draws,), p=weights)
    probes = jax.random.split(of_probes, draws)
    return jax.lax.map(of_example, indices), jax.lax.map(of_probe, probes)
