"""Which metrics a change of parametrisation moves: what theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from audit.changed import ALPHA, by_change, objective_of
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.audit.moments import followed
from sharpflat.audit.reparametrisations import batch_norm_scale, permuted_units

pytestmark = pytest.mark.usefixtures("x64")
LAYER = {"relative_flatness": {"layer": "Dense_0/kernel", "draws": 10}}
WHOLE = {"hessian_trace": {"steps": 100}}
ELEMENTWISE = [
    "fisher_rao_norm",
    "path_norm",
    "input_gradient_norm",
    LAYER,
    "worst_case_sharpness",
    {"worst_case_sharpness": {"norm": "l2", "rho": 0.1}},
    "average_case_sharpness",
    {"asam_sharpness": {"eta": 0.0}},
    {"pac_bayes_flatness_magnitude": {"epsilon": 0.0}},
    "worst_case_radius_magnitude",
    "radius_to_loss",
]
SOLVED = [
    "hessian_top_eigenvalues", "hessian_bottom_eigenvalue", "ggn_top_eigenvalues",
    "layerwise_hessian", "preconditioned_sharpness", "keskar_sharpness",
]  # fmt: skip
"""To a tolerance of their own."""
DETERMINISTIC = [
    *SOLVED, "fisher_rao_norm", "path_norm", "input_gradient_norm", "parameter_norm",
    "gradient_norm", "spectral_norm_product", "normalized_margin", "worst_case_sharpness",
    "sam_sharpness", "asam_sharpness", "directional_sharpness", "critical_sharpness",
    "gradient_noise_scale", "gradient_covariance_trace", "gradient_diversity",
    "worst_case_radius", "worst_case_radius_magnitude",
]  # fmt: skip


def dense_hessian(objective):
    """∇²L, all parameters in a row, and the name of each one's array."""
    flat, unravel = ravel_pytree(objective.params)
    hessian = jax.hessian(lambda w: objective.loss(unravel(w)))(flat)
    sizes = [leaf.size for leaf in jax.tree.leaves(objective.params)]
    return np.asarray(hessian), np.repeat(objective.layers(), sizes)


def test_hessian_of_a_relu_network_moves_as_its_blocks_do():
    """w' = D w with one entry of D an array: H' = D⁻¹ H D⁻¹, as Dinh et al. have it."""
    objective = objective_of()
    table = sf.invariance_table(objective, [WHOLE, "hessian_top_eigenvalues"], alpha=ALPHA)
    hessian, names = dense_hessian(objective)
    shrunk = {"Dense_0/kernel": 1 / ALPHA, "Dense_0/bias": 1 / ALPHA, "Dense_1/kernel": ALPHA}
    scale = np.array([shrunk.get(name, 1.0) for name in names])
    blocks = {name: np.trace(hessian[names == name][:, names == name]) for name in set(names)}
    trace = (
        (blocks["Dense_0/kernel"] + blocks["Dense_0/bias"]) / ALPHA**2
        + blocks["Dense_1/kernel"] * ALPHA**2
        + blocks["Dense_1/bias"]
    )
    row = by_change(table)["relu_rescaling"]
    assert row.before.value == pytest.approx(np.trace(hessian), rel=1e-6)
    assert row.after.value == pytest.approx(trace, rel=1e-6)
    assert row.factor == pytest.approx(trace / np.trace(hessian), rel=1e-6)
    assert row.verdict == "fooled"
    top = [np.linalg.eigvalsh(h)[-1] for h in (hessian, scale[:, None] * hessian * scale)]
    row = by_change(table, 1)["relu_rescaling"]
    assert (row.before.value, row.after.value) == pytest.approx(top, rel=1e-3)
    assert row.verdict == "fooled"
    assert {"hessian_trace[steps=100]", "hessian_top_eigenvalues"} == set(table.fooled)


def test_scale_before_batch_norm_shrinks_its_layers_curvature():
    """w' = D w, H' = D⁻¹ H D⁻¹, D = α on the layer before batch norm and 1 elsewhere."""
    objective = objective_of(batch_norm=True)
    hessian, names = dense_hessian(objective)
    after, _ = dense_hessian(batch_norm_scale(objective, alpha=ALPHA).objective)
    before = np.isin(names, ["Dense_0/kernel", "Dense_0/bias"])
    scale = np.where(before, 1 / ALPHA, 1.0)
    np.testing.assert_allclose(after, scale[:, None] * hessian * scale, atol=1e-10)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_what_rescaling_leaves_alone(batch_norm):
    """Measures in proportion to each weight, and those of the function alone."""
    objective = objective_of(batch_norm=batch_norm)
    table = sf.invariance_table(objective, ELEMENTWISE, alpha=ALPHA)
    rows = [row for row in table.rows if row.change in ("relu_rescaling", "batch_norm_scale")]
    assert len(rows) == len(ELEMENTWISE) * (1 + batch_norm)
    for row in rows:
        assert row.factor == pytest.approx(1, rel=1e-6), (row.label, row.change)
        assert row.verdict == ("invariant" if row.before.converged else "undecided")
    assert not table.fooled


def test_a_measure_of_one_layer_does_not_escape_the_change():
    """λmax of each layer's block: with batch norm the largest was not the layer that changed."""

    @sf.metric
    def second_kernel(objective, key):
        """The norm of one layer alone."""
        return sf.Estimate(float(jnp.linalg.norm(objective.params["Dense_1"]["kernel"])), 0.0, True)

    @sf.metric
    def last_kernel(objective, key):
        """The norm of the last layer alone."""
        return sf.Estimate(float(jnp.linalg.norm(objective.params["Dense_2"]["kernel"])), 0.0, True)

    objective = objective_of(depth=2, batch_norm=True)
    table = sf.invariance_table(objective, ["second_kernel", "last_kernel"], alpha=ALPHA)
    second, last = by_change(table), by_change(table, 1)
    assert second["relu_rescaling"].factor == pytest.approx(1 / ALPHA)
    assert second["batch_norm_scale"].factor == pytest.approx(ALPHA)
    assert last["relu_rescaling"].verdict == "fooled"
    assert last["batch_norm_scale"].verdict == "invariant"
    leaves = next(line for line in str(table).splitlines() if line.startswith("batch_norm_scale:"))
    assert leaves.endswith("; leaves Dense_2/kernel alone")
    with_one = sf.invariance_table(objective, "second_kernel", layer="Dense_0", alpha=ALPHA)
    assert by_change(with_one)["batch_norm_scale"].verdict == "invariant"
    blocks = sf.invariance_table(objective, {"layerwise_hessian": {"probes": 2}})
    assert by_change(blocks)["batch_norm_scale"].verdict == "fooled"


def test_what_rescaling_moves():
    absolute = [
        "parameter_norm",
        "gradient_norm",
        {"worst_case_sharpness": {"adaptive": False}},
    ]
    table = sf.invariance_table(objective_of(), absolute, alpha=10.0)
    factors = [row.factor for row in table.rows if row.change == "relu_rescaling"]
    assert all(abs(factor - 1) > 0.3 for factor in factors), factors
    assert {row.metric for row in table.fooled.values()} >= {"parameter_norm", "gradient_norm"}


def test_permuting_units_moves_nothing_that_is_deterministic():
    objective = objective_of(batch_norm=True)
    state = optax.ScaleByRssState(jax.tree.map(jnp.square, objective.params))
    change = permuted_units(objective)
    moved = followed(state, change, {"initial_accumulator_value": 0.0})
    before = sf.measure(objective, DETERMINISTIC, opt_state=state)
    after = sf.measure(change.objective, DETERMINISTIC, opt_state=moved)
    for spec, there, then in zip(DETERMINISTIC, before, after, strict=True):
        tolerance = 1e-3 if spec in SOLVED else 1e-6
        assert then.value == pytest.approx(there.value, rel=tolerance), spec
        assert there.standard_error in (0, None), spec


def test_logits_move_the_margin_but_not_the_normalised_one():
    margin = {"normalized_margin": {"normalization": "none"}}
    table = sf.invariance_table(objective_of(), ["normalized_margin", margin], alpha=ALPHA)
    rows = [row for row in table.rows if row.change == "logit_rescaling"]
    assert [row.factor for row in rows] == pytest.approx([1, ALPHA])
    assert [row.verdict for row in rows] == ["invariant", "fooled"]
    assert rows[0].outputs_deviation == pytest.approx(ALPHA - 1)
    assert not table.fooled, "rescaled logits are another function: nobody is fooled"


def test_the_start_stays_where_it_was():
    """The distance from it is moved by changes of the weights alone."""
    objective = objective_of()
    start = jax.tree.map(lambda leaf: leaf + 0.1, objective.params)
    table = sf.invariance_table(objective, "distance_from_initialization", initial_params=start)
    rows = {r.change: r for r in table.rows if r.metric == "distance_from_initialization"}
    assert {row.verdict for row in rows.values()} == {"fooled"}
    for change in table.changes:
        distance = sf.trees.norm(sf.trees.sub(change.objective.params, start))
        assert rows[change.name].after.value == pytest.approx(float(distance), rel=1e-5)
