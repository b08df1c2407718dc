"""The largest rise in a ball against closed forms and brute force, and mistakes not to make."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf
from sharpflat.sharpness.auto_pgd import _periods

H = np.array([9.0, 4.0, 1.0, 0.25])
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0])


def worst(objective, seed=0, **arguments):
    return sf.measure(objective, {"worst_case_sharpness": arguments}, seed=seed)


def network(policy="running", n=40, chunk=40, batch_norm=True):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(n, 6))), jnp.asarray(rng.integers(0, 3, n))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1, batch_norm=batch_norm))
    params, state = model.init(jax.random.key(0), data[0])
    params = jax.tree.map(lambda leaf: leaf.astype(data[0].dtype), params)
    return sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=chunk)


def linear(n=10, size=4):
    """L = mean(x) · w: the rise over a subset is the dual norm of c · mean(x)."""
    inputs = np.random.default_rng(1).normal(size=(n, size))
    data = jnp.asarray(inputs), jnp.zeros(n)
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.mean(batch.inputs @ w), jnp.asarray(WEIGHTS), data
    )
    return objective, inputs


@pytest.mark.parametrize("adaptive", [True, False])
def test_bowl_at_its_exact_minimum(adaptive, x64):
    """Classic mistake 9: the gradient at the start is exactly zero, and the bowl is not flat."""
    scale = np.abs(WEIGHTS) if adaptive else np.ones(4)
    arguments = {"rho": 0.1, "adaptive": adaptive}
    estimate = worst(quadratic(np.diag(H), WEIGHTS, 0.5), norm="linf", **arguments)
    assert estimate.value == pytest.approx(0.5 * 0.01 * np.sum(H * scale**2), rel=1e-6)
    assert estimate.converged
    assert estimate.standard_error is None
    matrix = rotated(H, seed=3)
    top = np.linalg.eigvalsh(scale[:, None] * matrix * scale).max()
    estimate = worst(quadratic(matrix, WEIGHTS, 0.5), norm="l2", steps=60, **arguments)
    assert estimate.value == pytest.approx(0.5 * 0.01 * top, rel=1e-6)
    assert estimate.converged


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_bowl_in_single_precision(norm):
    estimate = worst(quadratic(np.diag(H), WEIGHTS), norm=norm, rho=0.1, adaptive=False, steps=60)
    expected = 0.5 * 0.01 * (H.sum() if norm == "linf" else H.max())
    assert estimate.value == pytest.approx(expected, rel=1e-3)
    assert estimate.converged


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_mean_over_disjoint_subsets_in_order(norm, adaptive, x64):
    """A linear loss over 10 examples: subsets of 3 are the rows 0–2, 3–5 and 6–8."""
    objective, inputs = linear()
    scale = np.abs(WEIGHTS) if adaptive else np.ones(4)
    slopes = scale * inputs[:9].reshape(3, 3, 4).mean(axis=1)
    rises = 0.2 * np.linalg.norm(slopes, ord=2 if norm == "l2" else 1, axis=1)
    arguments = {"rho": 0.2, "norm": norm, "adaptive": adaptive, "batch_size": 3}
    estimate = worst(objective, **arguments)
    np.testing.assert_allclose(estimate.details["rises"], rises, rtol=1e-6)
    assert estimate.value == pytest.approx(rises.mean(), rel=1e-6)
    assert estimate.converged
    two = worst(objective, subsets=2, **arguments)
    assert two.value == pytest.approx(rises[:2].mean(), rel=1e-6)


def test_fewer_examples_than_a_subset_are_one_subset(x64):
    objective, inputs = linear()
    estimate = worst(objective, batch_size=128, rho=0.1, adaptive=False)
    assert estimate.value == pytest.approx(0.1 * np.abs(inputs.mean(axis=0)).sum(), rel=1e-6)


def test_coupled_bowl_reaches_the_best_vertex(x64):
    """With off-diagonal curvature vertices differ; all 2⁶ of them are tried here.

    Every seed ends at a vertex that no first-order step leaves, and the best seed at the best.
    """
    matrix = rotated([9, 4, 2, 1, 0.5, 0.1], seed=3)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T
    rises = 0.5 * 0.01 * np.einsum("vi,ij,vj->v", signs, matrix, signs)
    stationary = rises[(np.sign(signs @ matrix) == signs).all(axis=1)]
    bowl = quadratic(matrix)
    found = [worst(bowl, seed=s, norm="linf", adaptive=False, rho=0.1) for s in range(12)]
    for estimate in found:
        assert estimate.converged
        assert np.abs(stationary / estimate.value - 1).min() < 1e-6
    assert max(estimate.value for estimate in found) == pytest.approx(rises.max(), rel=1e-6)


def test_a_single_coordinate_of_zero_gradient_is_not_left_out(x64):
    """The sign of a zero is not zero: the second coordinate's rise is by far the larger."""
    objective = sf.Objective.from_function(
        lambda w, batch: w[0] + 50 * w[1] ** 2, jnp.zeros(2), ONE
    )
    estimate = worst(objective, norm="linf", rho=0.1, adaptive=False)
    assert estimate.value == pytest.approx(0.1 + 0.5, rel=1e-6)


def test_zero_weights_stay_where_they_are(x64):
    """Classic mistake 8: a division by |w| = 0 would make everything NaN."""
    weights = np.array([1.0, 0.0, -2.0, 0.0])
    for norm, expected in (("linf", np.sum(H * weights**2)), ("l2", np.max(H * weights**2))):
        estimate = worst(quadratic(np.diag(H), weights), norm=norm, rho=0.1, steps=60)
        assert estimate.value == pytest.approx(0.5 * 0.01 * expected, rel=1e-6)
        assert estimate.converged


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_maximum_inside_the_ball_is_found_by_halving(norm, x64):
    """Steps of twice the radius cannot settle there; halved ones do, and the gap says so.

    Steps along signs end at a distance of their last length: near the top, and not certified.
    """
    target = np.array([0.03, -0.01, 0.02])
    cap = sf.Objective.from_function(
        lambda w, batch: 1 - jnp.sum((w - target) ** 2), jnp.zeros(3), ONE
    )
    arguments = {"norm": norm, "adaptive": False, "rho": 0.1}
    estimate = worst(cap, steps=2000, **arguments)
    assert estimate.value == pytest.approx(np.sum(target**2), rel=1e-2)
    assert estimate.converged == (norm == "l2")
    assert not worst(cap, steps=3, **arguments).converged


def test_checkpoints_are_those_of_auto_pgd():
    ends = [(step + 1, int(period)) for step, period in enumerate(_periods(100)) if period]
    assert ends == [(22, 22), (41, 19), (57, 16), (70, 13), (80, 10), (87, 7), (93, 6), (99, 6)]
    assert [step + 1 for step, period in enumerate(_periods(20)) if period] == [
        5, 9, 12, 14, 16, 18, 19, 20,
    ]  # fmt: skip


def test_network_against_many_restarts_of_plain_ascent(x64):
    objective = network(batch_norm=False)
    flat, unravel = jax.flatten_util.ravel_pytree(objective.params)
    here = float(objective.loss(objective.params))
    slope = jax.jit(jax.value_and_grad(lambda z: objective.loss(unravel(flat + 0.5 * z))))
    best = 0.0
    for seed in range(20):
        z = np.random.default_rng(seed).normal(size=flat.size)
        for _ in range(200):
            z = z / max(1, np.linalg.norm(z))
            value, gradient = slope(jnp.asarray(z))
            best = max(best, float(value) - here)
            z = z + 0.3 * np.asarray(gradient) / np.linalg.norm(gradient)
    estimate = worst(objective, norm="l2", adaptive=False, rho=0.5, batch_size=40)
    assert estimate.converged
    assert estimate.value == pytest.approx(best, rel=1e-3)


def test_normalized_logits_do_not_see_the_scale_of_the_outputs(x64):
    """A last layer 7 times as large gives the same normalised logits, and |w| scales with it."""
    objective = network(batch_norm=False)
    last = "Dense_1"
    scaled = {
        **objective.params,
        last: jax.tree.map(lambda leaf: 7 * leaf, objective.params[last]),
    }
    values = {
        wanted: [
            worst(dataclasses.replace(objective, params=params), normalize_logits=wanted).value
            for params in (objective.params, scaled)
        ]
        for wanted in (True, False)
    }
    assert values[True][0] == pytest.approx(values[True][1], rel=1e-6)
    assert values[False][0] != pytest.approx(values[False][1], rel=0.1)
    outputs = np.asarray(objective.outputs(objective.params))
    outputs = outputs - outputs.mean(axis=1, keepdims=True)
    outputs = outputs / np.linalg.norm(outputs, axis=1, keepdims=True)
    labels = np.asarray(objective.data.labels)
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(40), labels]
    found = worst(objective, normalize_logits=True).details["losses"]
    assert found == pytest.approx(losses.mean(), rel=1e-6)
    blank = {**objective.params, last: jax.tree.map(jnp.zeros_like, objective.params[last])}
    silent = worst(dataclasses.replace(objective, params=blank), normalize_logits=True)
    assert silent.value == 0
    np.testing.assert_allclose(silent.details["losses"], np.log(3))


def test_what_is_not_maximised_is_not_certified():
    """Too few steps on a hard ball; a flat loss; statistics that the gradient does not see."""
    hard = quadratic(rotated([9, 8.8, 1, 0.1], seed=1))
    assert not worst(hard, norm="l2", adaptive=False, steps=1).converged
    flat = sf.Objective.from_function(lambda w, batch: 0 * jnp.sum(w), jnp.ones(3), ONE)
    assert worst(flat).value == 0
    assert not worst(flat).converged
    assert not worst(network("recalibrated")).converged
    assert worst(network("running")).converged


def test_a_loss_that_is_not_finite_in_the_ball_is_not_flat():
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.where(jnp.abs(w).max() > 1.05, jnp.nan, jnp.sum(w**2)),
        jnp.ones(2),
        ONE,
    )
    estimate = worst(objective, rho=0.1)
    assert np.isnan(estimate.value)
    assert not estimate.converged


def test_subsets_of_batch_statistics_hold_whole_chunks():
    objective = network("batch", chunk=20)
    assert np.isfinite(worst(objective, batch_size=20).value)
    with pytest.raises(sf.InputError, match="batch_size: the objective's chunk of 20 does not"):
        worst(objective, batch_size=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0.0}, "worst_case_sharpness.rho"),
        ({"rho": float("inf")}, "worst_case_sharpness"),
        ({"norm": "l1"}, "worst_case_sharpness.norm"),
        ({"steps": 0}, "worst_case_sharpness.steps"),
        ({"subset": 3}, "did you mean 'subsets'"),
        ({"normalize_logits": True}, "normalize_logits: an objective made by from_function"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        worst(quadratic(np.diag(H)), **arguments)


def auto_pgd(loss, slope, radius, norm, steps):
    """The largest loss that algorithm 1 of Croce & Hein (2020) sees, in NumPy."""

    def project(z):
        return np.clip(z, -1, 1) if norm == "linf" else z / max(1, np.linalg.norm(z))

    def along(z):
        gradient = radius * slope(radius * z)
        return np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)

    def value(z):
        return loss(radius * z)

    ends, step, rises, since = {s for s, p in enumerate(_periods(steps)) if p}, 2.0, 0, 0
    before = here = best = np.zeros_like(radius)
    marked = (step, value(best))
    for k in range(steps):
        ahead = project(here + step * along(here))
        mixed = here + 0.75 * (ahead - here) + 0.25 * (here - before)
        there = project(mixed) if k else ahead
        rises += value(there) > value(here)
        before, here, best = here, there, max(best, there, key=value)
        if k in ends:
            halve = rises < 0.75 * (k + 1 - since) or marked == (step, value(best))
            marked, rises, since = (step, value(best)), 0, k + 1
            if halve:
                step, before, here = step / 2, best, best
    return value(best)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("steps", [3, 10, 20])
def test_steps_are_those_of_auto_pgd(norm, steps, x64):
    """A curved loss with a slope and a maximum inside, so that momentum and halving both matter."""
    matrix = np.diag([-9.0, -4.0, 2.0, -0.25])
    slope = np.array([1.0, -0.5, 0.3, 0.2])
    objective = sf.Objective.from_function(
        lambda w, batch: slope @ (w - WEIGHTS) + 0.5 * (w - WEIGHTS) @ matrix @ (w - WEIGHTS),
        jnp.asarray(WEIGHTS),
        ONE,
    )
    expected = auto_pgd(
        lambda d: slope @ d + 0.5 * d @ matrix @ d,
        lambda d: slope + matrix @ d,
        0.3 * np.abs(WEIGHTS), norm, steps,
    )  # fmt: skip
    estimate = worst(objective, norm=norm, rho=0.3, steps=steps)
    assert estimate.value == pytest.approx(expected, rel=1e-9)
