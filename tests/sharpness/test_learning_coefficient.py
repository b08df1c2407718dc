"""The local learning coefficient: quadratics, reduced-rank regression, and chains that fail."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from cases.langevin import (
    EXAMPLES,
    N_BETA,
    SPECTRUM,
    bowl,
    coefficient,
    noisy_bowl,
    with_statistics,
)
from helpers import quadratic

import sharpflat as sf
from sharpflat.sharpness.langevin import drifts
from sharpflat.sharpness.learning_coefficient import split_r_hat

LONG = {"chains": 32, "steps": 400, "burn_in": 100, "localization": 20.0}


def learn(objective, seed=0, **arguments):
    return sf.measure(objective, {"local_learning_coefficient": arguments}, seed=seed)


def test_quadratic_within_its_error(x64):
    estimate = learn(bowl(), **LONG)
    assert abs(estimate.value - coefficient(20.0)) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.02 * coefficient(20.0)
    assert estimate.converged
    details = estimate.details
    assert (details["n_beta"], details["examples"]) == (pytest.approx(N_BETA), EXAMPLES)
    assert details["curvature"] == pytest.approx(SPECTRUM.max(), rel=1e-2)
    assert details["step_size"] == pytest.approx(1 / (N_BETA * details["curvature"] + 20))
    assert details["trace"].shape == (32, 500)
    assert estimate.value == pytest.approx(details["trace"][:, 100:].mean())
    assert estimate.standard_error == pytest.approx(details["chains"].std(ddof=1) / math.sqrt(32))


def test_many_parameters_average_themselves():
    """A thousand directions at n β h = γ: a quarter each, in single precision."""
    objective = sf.Objective.from_function(
        lambda w, batch: 0.5 * jnp.sum(w**2),
        jnp.zeros(1000),
        (jnp.ones((EXAMPLES, 1)), jnp.ones(EXAMPLES)),
    )
    estimate = learn(objective, localization=N_BETA, chains=8)
    assert abs(estimate.value - 250) < 4 * estimate.standard_error
    assert estimate.standard_error < 2.5
    assert estimate.converged


def test_the_number_of_examples_counts_and_not_the_batch(x64):
    """A known library multiplies by the batch's size over its logarithm by default."""
    small = learn(bowl(), batch_size=5, **LONG)
    assert abs(small.value - coefficient(20.0)) < 4 * small.standard_error
    assert small.details["n_beta"] == pytest.approx(N_BETA)


def published(m, h, n):
    """λ of reduced-rank regression m → h → n at zero (Aoyagi & Watanabe, 2005)."""
    if m + h < n:
        return m * h / 2
    if n + h < m:
        return h * n / 2
    if m + n < h:
        return m * n / 2
    return (2 * (m * n + h * n + m * h) - m**2 - n**2 - h**2 + (m + h + n) % 2) / 8


def reduced_rank(c, pull, m, h, n):
    """E[½ c ‖AB‖²] over p ∝ exp(−½ c ‖AB‖² − ½ γ (‖A‖² + ‖B‖²)), A m × h and B h × n.

    B is Gaussian given A; what remains is an integral over A's singular values s, of density
    Π |s_i² − s_j²| Π s_i^|m − h|, here two of them.
    """
    assert min(m, h) == 2
    s = np.exp(np.linspace(math.log(1e-9), math.log(12 / math.sqrt(pull)), 2000))
    a, b = np.meshgrid(s, s)
    widths = ((c * a**2 + pull) * (c * b**2 + pull)) ** (n / 2)
    density = np.abs(a**2 - b**2) * (a * b) ** abs(m - h) * np.exp(-pull * (a**2 + b**2) / 2)
    weights = density / widths * a * b
    rises = n / 2 * (c * a**2 / (c * a**2 + pull) + c * b**2 / (c * b**2 + pull))
    return np.sum(weights * rises) / np.sum(weights)


RANKS = {(2, 2, 5): 2.0, (5, 2, 2): 2.0, (2, 5, 2): 2.0, (2, 2, 2): 1.5, (2, 3, 3): 2.5}


@pytest.mark.parametrize("shape", RANKS)
def test_published_coefficients_of_reduced_rank_regression(shape):
    """All four cases: three where one side is the widest by far, one where none is."""
    assert published(*shape) == RANKS[shape]
    assert reduced_rank(1e10, 1.0, *shape) == pytest.approx(RANKS[shape], rel=2e-3)


def test_the_published_odd_case():
    """m + h + n odd: a multiplicity of two, which a limit reaches only as 1 / log c."""
    assert published(2, 2, 3) == 2.0
    slow = [reduced_rank(c, 1.0, 2, 2, 3) + 1 / math.log(c) for c in (1e6, 1e12)]
    assert slow == pytest.approx([2.0, 2.0], abs=0.02)


@pytest.mark.parametrize("shape", [(2, 2, 2), (2, 2, 5), (5, 2, 2), (2, 5, 2)])
def test_reduced_rank_regression_at_the_degenerate_point(shape, x64):
    """The published values are limits of many examples; at these the exact one is an integral."""
    n, (inputs, hidden, outputs) = 1000, shape
    data = np.random.default_rng(0).normal(size=(n, inputs))
    data = data @ np.linalg.inv(np.linalg.cholesky(data.T @ data / n)).T
    objective = sf.Objective.from_function(
        lambda p, batch: 0.5 * jnp.mean(jnp.sum((batch.inputs @ p["a"] @ p["b"]) ** 2, axis=1)),
        {"a": jnp.zeros((inputs, hidden)), "b": jnp.zeros((hidden, outputs))},
        (jnp.asarray(data), jnp.zeros((n, outputs))),
    )
    estimate = learn(
        objective, chains=16, steps=4000, burn_in=1000, batch_size=n, localization=3.0,
        step_size=4e-3,
    )  # fmt: skip
    exact = reduced_rank(n / math.log(n), 3.0, *shape)
    assert estimate.converged
    assert abs(estimate.value - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.03 * exact


def test_linear_regression_on_mini_batches(x64):
    """Interpolated data leave no gradient noise at w*, and the batches' H varies by itself."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 5)) * np.array([1.0, 1.0, 2.0, 0.5, 0.1])[None]
    objective = sf.Objective.from_function(
        lambda w, batch: 0.5 * jnp.mean((batch.inputs @ w - batch.labels) ** 2),
        jnp.ones(5),
        (jnp.asarray(inputs), jnp.asarray(inputs.sum(axis=1))),
    )
    pulls = 200 / math.log(200) * np.linalg.eigvalsh(inputs.T @ inputs / 200)
    exact = 0.5 * np.sum(pulls / (pulls + 10))
    estimate = learn(objective, **{**LONG, "localization": 10.0, "batch_size": 50, "chains": 32})
    assert abs(estimate.value - exact) < 4 * estimate.standard_error + 0.02 * exact
    assert estimate.converged


def test_steps_that_are_too_long_are_not_certified():
    estimate = learn(bowl(), **{**LONG, "step_size": 5 / (N_BETA * SPECTRUM.max() + 20)})
    assert not estimate.converged
    assert estimate.details["failed"].all()


def test_a_chain_that_leaves_is_told():
    """Beyond a ridge the loss is not finite: the value is NaN, the chains that left are named."""
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.where(w > 0.06, jnp.nan, 0.0 * w),
        jnp.array(0.0),
        (jnp.ones((EXAMPLES, 1)), jnp.ones(EXAMPLES)),
    )
    estimate = learn(objective, steps=40, burn_in=0, chains=8, step_size=1e-4, localization=20.0)
    assert 0 < estimate.details["failed"].sum() < 8
    assert np.isnan(estimate.value)
    assert estimate.standard_error is None
    assert not estimate.converged


def test_no_minimum_is_not_certified(x64):
    """At a maximum the mean loss around is lower: λ̂ is negative."""
    hill = sf.Objective.from_function(
        lambda w, batch: -0.5 * jnp.sum(w**2),
        jnp.zeros(5),
        (jnp.ones((EXAMPLES, 1)), jnp.ones(EXAMPLES)),
    )
    estimate = learn(hill, localization=100.0, chains=8)
    assert estimate.value < 0
    assert estimate.details["failed"].all()
    assert not estimate.converged


def test_chains_that_still_climb_are_not_certified(x64):
    """Steps far too small to fill the basin in time: the value is too low, and that is told."""
    estimate = learn(bowl(), **{**LONG, "burn_in": 0, "step_size": 1e-5})
    assert estimate.value < 0.7 * coefficient(20.0)
    assert not estimate.converged


def scaled_bowl(w, batch):
    return 0.5 * jnp.mean(batch.labels * (batch.inputs @ w**2))


def settle(ratio, seed, **arguments):
    """n β h = `ratio` · γ once and γ fifty times, at the default chains' own ε = 1 / (n β h + γ).

    Batches of four examples, each with twice the loss or none, hide from R̂ that chains are slow.
    """
    curvatures = jnp.asarray([ratio, *np.ones(50)]) * 1000 / N_BETA
    data = jnp.tile(curvatures[None], (EXAMPLES, 1)), jnp.tile(jnp.array([0.0, 2.0]), EXAMPLES // 2)
    objective = sf.Objective.from_function(scaled_bowl, jnp.zeros(51), data)
    step = 1 / (1000 * (ratio + 1))
    return learn(objective, seed, step_size=step, batch_size=4, **arguments)


def test_a_burn_in_too_short_for_the_flattest_directions_is_not_certified():
    """The step that the steep one bears leaves the fifty empty: 5.5 where 13 is right."""
    exact = 0.5 * 600 / 601 + 0.5 * 25
    short = [settle(600.0, seed) for seed in range(8)]
    for estimate in short:
        assert estimate.value < 0.5 * exact
        assert estimate.details["filled"] == pytest.approx(100 / 601)
        assert not estimate.converged
    others = [not drifts(e.details["trace"][:, 100:]) and e.details["r_hat"] < 1.1 for e in short]
    assert any(others), "the other checks do not see it"
    enough = settle(600.0, 0, burn_in=2500, steps=1000, chains=16)
    assert enough.value == pytest.approx(exact, rel=0.05)
    assert enough.converged


def test_the_rule_of_the_burn_in():
    """`burn_in` · ε γ ≥ 4, which is n β h ≤ (`burn_in` / 4 − 1) γ with the default step."""
    settled = {
        ratio: any(settle(ratio, seed).converged for seed in range(8)) for ratio in (23.5, 24.5)
    }
    assert settled == {23.5: True, 24.5: False}


def flat_bowl(w, batch):
    return 0.5 * jnp.sum(batch.inputs[0] * w**2)


@pytest.mark.parametrize(("steep", "certified"), [(64.0, False), (23.0, True)])
def test_directions_far_flatter_than_the_pull_fill_up_first(steep, certified):
    """A thousand at n β h = γ / 100 carry ten times what the steep one does, and fill last."""
    ratios = np.array([steep, *np.full(1000, 0.01)])
    exact = 0.5 * np.sum(ratios / (ratios + 1))
    curvatures = jnp.asarray(ratios * 1000 / N_BETA)
    data = jnp.tile(curvatures[None], (EXAMPLES, 1)), jnp.ones(EXAMPLES)
    objective = sf.Objective.from_function(flat_bowl, jnp.zeros(1001), data)
    found = [learn(objective, seed, step_size=1e-3 / (steep + 1)) for seed in range(8)]
    short = 1 - np.mean([estimate.value for estimate in found]) / exact
    assert (short > 0.07) is not certified
    assert any(estimate.converged for estimate in found) is certified
    if certified:
        assert short < 0.02


def test_recalibrated_batch_norm_is_never_certified():
    running = learn(with_statistics("running"), localization=5.0, chains=16)
    assert running.converged
    estimate = learn(with_statistics("recalibrated"), localization=5.0, chains=16)
    assert estimate.value == pytest.approx(running.value)
    assert not estimate.converged


def test_chains_that_came_apart_are_not_certified(x64):
    """A wide plateau around a narrow well: few chains visit both in so few steps."""
    well = sf.Objective.from_function(
        lambda w, batch: 0.05 * (1 - jnp.exp(-((w / 0.1) ** 2))),
        jnp.array(0.0),
        (jnp.ones((EXAMPLES, 1)), jnp.ones(EXAMPLES)),
    )
    estimate = learn(well, localization=20.0, chains=16, step_size=3e-4, burn_in=1500, steps=100)
    assert not drifts(estimate.details["trace"][:, 1500:])
    assert not estimate.details["failed"].any()
    assert estimate.details["r_hat"] > 1.1
    assert not estimate.converged


@pytest.mark.parametrize("free", [0, 200])
def test_batches_whose_noise_widens_the_chains_are_not_certified(free, x64):
    """L = ½ ‖w‖² + w · mean(x): a batch's gradient has variance S, and ε (n β)² S / 4 is 1.

    The excess gives the error, and parameters that the loss leaves free do not thin it out.
    """
    noise = np.random.default_rng(0).normal(size=(EXAMPLES, 4))
    noise -= noise.mean(axis=0)
    step = 1 / (2 * N_BETA)
    # Ten of fifty without replacement: S = (1/10) (40/49) of the examples' variance.
    share = step * N_BETA**2 * noise.var(axis=0) / 4 * 40 / 490
    inputs = jnp.asarray(noise / np.sqrt(share))
    objective = sf.Objective.from_function(
        noisy_bowl, jnp.zeros(4 + free), (inputs, jnp.zeros(EXAMPLES))
    )
    arguments = {**LONG, "localization": N_BETA, "step_size": step}
    noisy = learn(objective, batch_size=10, **arguments)
    whole = learn(objective, **arguments)
    assert abs(whole.value - 1.0) < 4 * whole.standard_error
    assert whole.converged
    assert noisy.value > 1.5
    assert noisy.value - 1 < noisy.details["excess"].mean() < 4 * (noisy.value - 1)
    assert not noisy.details["failed"].any()
    assert not drifts(noisy.details["trace"][:, 100:])
    assert not noisy.converged


def sloped_bowl(steep, widening, free, n=1000):
    """Steep directions, n β h = 20 γ, which batches of 256 widen by so much; what is right."""
    n_beta, pull = n / math.log(n), 1000.0
    h = 20 * pull / n_beta
    # x = ε (n β)² S / (4 − ε k) with ε k = 1, of batches without replacement.
    variance = widening * 3 * 21 * pull / n_beta**2
    slopes = np.random.default_rng(0).normal(size=(n, steep))
    slopes = (slopes - slopes.mean(axis=0)) / slopes.std(axis=0)
    slopes *= math.sqrt(variance * 256 * (n - 1) / (n - 256))

    def loss(w, batch):
        return 0.5 * h * jnp.sum(w[:steep] ** 2) + jnp.mean(batch.inputs @ w[:steep])

    data = jnp.asarray(slopes, jnp.float32), jnp.zeros(n)
    return sf.Objective.from_function(loss, jnp.zeros(steep + free), data), steep * 10 / 21


@pytest.mark.parametrize("free", [0, 200])
@pytest.mark.parametrize(("steep", "widening"), [(4, 0.5), (30, 0.3), (30, 0.02)])
def test_at_its_defaults_noise_is_certified_only_where_it_is_little(steep, widening, free):
    """Four chains have an error of their own, in which a wrong width can hide."""
    objective, exact = sloped_bowl(steep, widening, free)
    found = [learn(objective, seed) for seed in range(10)]
    raised = [estimate.details["raised"].mean() for estimate in found]
    assert np.mean(raised) == pytest.approx(steep * widening / 2, rel=0.1)
    mean = np.mean([estimate.value for estimate in found])
    assert mean == pytest.approx(exact * (1 + widening), rel=0.1)
    assert any(estimate.converged for estimate in found) is (widening < 0.1)


def test_one_chain_has_no_error_and_no_certificate():
    estimate = learn(bowl(), **{**LONG, "chains": 1})
    assert estimate.standard_error is None
    assert not estimate.converged


def test_split_r_hat():
    noise = np.random.default_rng(0).normal(size=(4, 500))
    assert split_r_hat(noise) == pytest.approx(1, abs=0.01)
    assert split_r_hat(noise + np.arange(4)[:, None]) > 1.3
    assert split_r_hat(noise + np.linspace(0, 4, 500)[None]) > 1.3
    assert split_r_hat(np.ones((4, 10))) == 1
    assert split_r_hat(np.arange(4)[:, None] * np.ones((4, 10))) == math.inf
    assert math.isnan(split_r_hat(noise[:, :3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chains": 0}, "local_learning_coefficient.chains"),
        ({"burn_in": -1}, "local_learning_coefficient.burn_in"),
        ({"step_size": 0.0}, "local_learning_coefficient.step_size"),
        ({"localization": 0.0}, "local_learning_coefficient.localization"),
        ({"gamma": 1.0}, "unknown key 'gamma'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        learn(bowl(), **arguments)


def test_one_example_is_refused():
    with pytest.raises(sf.InputError, match="local_learning_coefficient: data: β = 1 / log n"):
        learn(quadratic(np.eye(2)))
