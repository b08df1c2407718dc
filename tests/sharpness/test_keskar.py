"""φ against closed forms, and the mistake it exists to avoid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ONE, quadratic, rotated

import sharpflat as sf

SOLVERS = ["lbfgsb", "ascent"]
H = np.array([9.0, 4.0, 1.0, 0.25])


def phi(objective, **arguments):
    return sf.measure(objective, "keskar_sharpness", **arguments)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("epsilon", [1e-3, 5e-4, 0.1])
def test_exactly_zero_gradient_and_known_sharpness(solver, epsilon, x64):
    """A diagonal bowl: the maximum is at every vertex. A solver that stops at its start gives 0."""
    minimum, floor = np.array([1.0, -2.0, 0.0, 3.0]), 0.5
    box = epsilon * (np.abs(minimum) + 1)
    expected = 100 * 0.5 * np.sum(H * box**2) / (1 + floor)
    estimate = phi(quadratic(np.diag(H), minimum, floor), solver=solver, epsilon=epsilon)
    assert estimate.value == pytest.approx(expected, rel=1e-9)
    assert estimate.converged
    assert estimate.details["phi_zero"] == 0
    assert estimate.details["phi_sign"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_sharpness_in_single_precision(solver):
    minimum, floor, epsilon = np.array([1.0, -2.0, 0.0, 3.0]), 0.5, 0.1
    expected = 100 * 0.5 * np.sum(H * (epsilon * (np.abs(minimum) + 1)) ** 2) / (1 + floor)
    estimate = phi(quadratic(np.diag(H), minimum, floor), solver=solver, epsilon=epsilon)
    assert estimate.value == pytest.approx(expected, rel=1e-3)
    assert estimate.converged


def test_a_start_at_zero_alone_is_honest_about_it():
    estimate = phi(quadratic(np.diag(H)), starts=("zero",))
    assert estimate.value == 0
    assert not estimate.converged


@pytest.mark.parametrize("solver", SOLVERS)
def test_coupled_bowl_reaches_the_best_vertex(solver, x64):
    """With off-diagonal curvature vertices differ; all 2⁶ of them are tried here."""
    matrix = rotated([9, 4, 2, 1, 0.5, 0.1], seed=3)
    epsilon = 0.1
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1).T * epsilon
    best = 100 * 0.5 * np.einsum("vi,ij,vj->v", signs, matrix, signs).max()
    values = [
        sf.measure(
            quadratic(matrix), {"keskar_sharpness": {"solver": solver, "epsilon": epsilon}}, seed=s
        ).value
        for s in range(8)
    ]
    assert max(values) == pytest.approx(best, rel=1e-6)
    assert max(values) <= best * (1 + 1e-9)
    assert min(values) > 0.5 * best


@pytest.mark.parametrize("solver", SOLVERS)
def test_maximum_inside_the_box(solver, x64):
    """A concave cap at 0.4 ε: the box does not bind, the gap certifies it."""
    cap = sf.Objective.from_function(
        lambda w, batch: 1 - jnp.sum((w - 0.04) ** 2), jnp.zeros(3), ONE
    )
    estimate = phi(cap, solver=solver, epsilon=0.1, iterations=40)
    expected = 100 * (3 * 0.04**2) / (1 + 1 - 3 * 0.04**2)
    assert estimate.value == pytest.approx(expected, rel=1e-2)
    if solver == "lbfgsb":
        assert estimate.converged
        assert estimate.details["projected_gradient"] < 1e-4


def test_tiny_gradient_does_not_stop_lbfgsb(x64):
    """Classic mistake 9: with SciPy's default tolerances this minimum is perfectly flat."""
    minimum = np.full(50, 1e-9)
    objective = sf.Objective.from_function(
        lambda w, batch: 0.5 * 300.0 * jnp.sum((w - minimum) ** 2), jnp.zeros(50), ONE
    )
    estimate = phi(objective, starts=("zero",))
    assert estimate.value == pytest.approx(100 * 0.5 * 300 * 50 * 1e-6, rel=1e-3)


def test_a_loss_that_is_not_finite_in_the_box_is_not_flat():
    objective = sf.Objective.from_function(
        lambda w, batch: jnp.where(jnp.abs(w).max() > 5e-4, jnp.nan, jnp.sum(w**2)),
        jnp.zeros(2),
        ONE,
    )
    for solver in SOLVERS:
        estimate = phi(objective, solver=solver)
        assert np.isnan(estimate.value)
        assert not estimate.converged


def test_starts_that_disagree_are_not_certified(x64):
    """Two local maxima at opposite vertices: each start may end at another."""
    tilted = sf.Objective.from_function(
        lambda w, batch: 1 + jnp.sum(w**2) * (1 + 0.5 * jnp.tanh(1e3 * w[0])), jnp.zeros(1), ONE
    )
    values, flags = set(), set()
    for seed in range(12):
        spec = {"keskar_sharpness": {"epsilon": 0.1, "starts": ["sign", "random"]}}
        estimate = sf.measure(tilted, spec, seed=seed)
        by_start = estimate.details["phi_sign"][0], estimate.details["phi_random"][0]
        assert estimate.converged == (min(by_start) > 0.99 * max(by_start))
        values.add(round(estimate.value, 6))
        flags.add(estimate.converged)
    assert flags == {True, False}


def test_recalibrated_batch_norm_is_never_certified():
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(30, 6)), jnp.float32), jnp.asarray(rng.integers(0, 3, 30))
    model = sf.models["mlp"](3, width=5, depth=1, batch_norm=True)
    params, state = sf.Model.of(model).init(jax.random.key(0), data[0])
    objective = sf.Objective.from_model(model, params, state, data, batch_norm="recalibrated")
    assert not phi(objective, epsilon=1e-5, iterations=40).converged


def test_subspace_perturbs_around_x_by_a_times_z(x64):
    """f(w) = exp(b·w) is monotone: its maximum over z is f(x) exp(Σ |b·a_i| bound_i), exactly."""
    x, b = np.linspace(-1, 1, 8), np.linspace(0.1, 0.4, 8)
    objective = sf.Objective.from_function(lambda w, batch: jnp.exp(w @ b), jnp.asarray(x), ONE)
    from sharpflat.sharpness.keskar import _basis

    key = jax.random.key(0)
    draw = jax.random.split(key, 1)[0]
    a = np.asarray(_basis(objective, jax.random.split(draw)[0], 3, "gaussian", 1.0)).T
    coordinates = np.linalg.lstsq(a, x, rcond=None)[0]
    bound = 0.01 * (np.abs(coordinates) + 1)
    start = np.exp(b @ x)
    expected = 100 * start * (np.exp(np.abs(b @ a) @ bound) - 1) / (1 + start)
    estimate = phi(objective, epsilon=0.01, subspace=3, draws=1)
    assert estimate.value == pytest.approx(expected, rel=1e-6)
    assert estimate.converged


@pytest.mark.parametrize("columns", ["gaussian", "unit"])
def test_subspace_of_a_bowl(columns, x64):
    """One column a: z is a number, |z| ≤ ε (|a·x| / ‖a‖² + 1), and the rise ½ h z² ‖a‖²."""
    h, epsilon, size = 7.0, 0.01, 40
    estimate = phi(
        quadratic(h * np.eye(size)), subspace=1, columns=columns, epsilon=epsilon, draws=400
    )
    squared_norm = size if columns == "gaussian" else 1.0
    expected = 100 * 0.5 * h * epsilon**2 * squared_norm
    if columns == "unit":
        assert estimate.value == pytest.approx(expected, rel=1e-6)
    else:
        assert abs(estimate.value - expected) < 4 * estimate.standard_error
        spread = np.sqrt(2 / size) * expected / np.sqrt(400)
        assert estimate.standard_error == pytest.approx(spread, rel=0.2)


def test_subspace_box_follows_the_projection_of_x(x64):
    """(A⁺x)_i widens the box, divided by the squared norm (classic mistake 10)."""
    x = np.linspace(1, 2, 10)
    objective = quadratic(np.eye(10), x)
    estimate = phi(objective, subspace=10, draws=1, columns="gaussian", epsilon=1e-3, scale=0.1)
    from sharpflat.sharpness.keskar import _bound

    basis = jnp.asarray(0.1 * np.random.default_rng(0).normal(size=(10, 10)))
    exact = 1e-3 * (np.abs(np.linalg.lstsq(np.asarray(basis).T, x, rcond=None)[0]) + 1)
    np.testing.assert_allclose(_bound(objective, basis, 1e-3), exact, rtol=1e-8)
    assert estimate.value > 0
    assert estimate.standard_error is None


def test_value_is_the_best_start_and_evaluations_are_counted():
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(30, 6)), jnp.float32), jnp.asarray(rng.integers(0, 3, 30))
    model = sf.models["mlp"](3, width=5, depth=1, batch_norm=True)
    params, state = sf.Model.of(model).init(jax.random.key(0), data[0])
    for policy in ("batch", "running", "recalibrated"):
        objective = sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=15)
        details = (estimate := phi(objective)).details
        by_start = [details[f"phi_{name}"][0] for name in ("zero", "sign", "random")]
        assert estimate.value == pytest.approx(max(by_start))
        assert all(details[f"evaluations_{name}"][0] >= 2 for name in ("zero", "sign", "random"))
        assert details["loss"] == pytest.approx(float(objective.loss(params)))


def test_wider_boxes_are_never_flatter():
    objective = quadratic(np.diag(H), np.ones(4))
    values = [phi(objective, epsilon=e).value for e in (1e-4, 1e-3, 1e-2)]
    assert values == sorted(values)
    assert values[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": 0.0}, "keskar_sharpness.epsilon"),
        ({"epsilon": float("nan")}, "keskar_sharpness.epsilon"),
        ({"epsilom": 1e-3}, "did you mean 'epsilon'"),
        ({"subspace": 9}, "subspace: 9 is above the 4 parameters"),
        ({"starts": []}, "at least one start"),
        ({"starts": ["origin"]}, "keskar_sharpness.starts"),
        ({"solver": "lbfgs"}, "keskar_sharpness.solver"),
        ({"draws": True}, "keskar_sharpness.draws"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(sf.InputError, match=message):
        phi(quadratic(np.diag(H)), **arguments)
