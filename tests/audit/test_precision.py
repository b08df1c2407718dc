"""The same metric in coarser number formats, and how many digits agree."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sharpflat as sf
from sharpflat.audit import PrecisionTable, precision
from sharpflat.audit.measuring import chosen
from sharpflat.runs.setup import fill_registries

fill_registries()
ONE = (jnp.ones((1, 1)), jnp.ones(1))


def bowl(params):
    return sf.Objective.from_function(lambda w, batch: jnp.sum(w**2), params, ONE)


def network(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(20, 4)), dtype)
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1, batch_norm=True))
    params, state = model.init(jax.random.key(0), inputs)
    params, state = jax.tree.map(lambda leaf: leaf.astype(dtype), (params, state))
    data = (inputs, jnp.asarray(rng.integers(0, 3, 20)))
    return sf.Objective.from_model(model, params, state, data)


def by_format(table):
    return {row.format: row for row in table.rows}


def test_digits_are_those_of_the_format():
    """√(0.1² + 0.2²): the float32 numbers nearest to 0.1 and 0.2 have 7 digits, bfloat16's 2."""
    rows = by_format(sf.precision_table(bowl(jnp.array([0.1, 0.2])), "parameter_norm"))
    assert list(rows) == ["bfloat16", "float32", "float64"]
    wide = np.float64(np.array([0.1, 0.2], np.float32))
    assert rows["float64"].estimate.value == pytest.approx(np.linalg.norm(wide), rel=1e-15)
    assert 1 < rows["bfloat16"].digits < 4
    assert 6.5 < rows["float32"].digits < 10
    assert rows["float64"].digits == 16
    for row in rows.values():
        error = abs(row.estimate.value - rows["float64"].estimate.value)
        assert row.reference is rows["float64"].estimate
        if error:
            expected = -np.log10(error / rows["float64"].estimate.value)
            assert row.digits == pytest.approx(expected)


def test_numbers_that_every_format_holds_agree_to_the_last_digit():
    rows = by_format(sf.precision_table(bowl(jnp.array([3.0, 4.0])), "parameter_norm"))
    assert {row.digits for row in rows.values()} == {16.0}
    plain = sf.precision_table(bowl(jnp.array([3.0, 4.0])), "parameter_norm")
    assert plain.batch_norm is None
    assert "batch norm" not in str(plain)


def test_a_difference_near_one_loses_its_digits():
    """(1 + 1e-4) − 1 is zero in bfloat16, 1e-4 with three digits left in float32."""

    @sf.metric
    def cancelling(objective, key):
        """w − 1."""
        return sf.Estimate(objective.params + 1e-4 - 1, 0.0, True)

    rows = by_format(sf.precision_table(bowl(jnp.array(1.0)), "cancelling"))
    assert rows["bfloat16"].digits == 0
    assert 2.5 < rows["float32"].digits < 5


def test_everything_is_cast_and_nothing_stays_so():
    seen = []

    @sf.metric
    def spy(objective, key, *, initial_params, optimizer):
        """Looks at dtypes."""
        tree = (objective.params, objective.model_state, objective.data.inputs, initial_params)
        seen.append({str(leaf.dtype) for leaf in jax.tree.leaves(tree)})
        seen[-1].add(str(objective.loss(objective.params).dtype))
        assert jnp.issubdtype(objective.data.labels.dtype, jnp.integer)
        assert callable(optimizer.update)
        return sf.Estimate(1.0, 0.0, True)

    objective, rule = network(), sf.optimizers["adam"]()
    inputs = {"initial_params": objective.params, "optimizer": rule}
    table = sf.precision_table(objective, "spy", **inputs)
    assert seen == [{"bfloat16"}, {"float32"}, {"float64"}]
    assert not table.skipped
    assert not any("failed" in line for line in str(table).splitlines())
    assert not jax.config.jax_enable_x64
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(objective.params)} == {"float32"}
    with jax.enable_x64(True):
        double = sf.precision_table(network(jnp.float64), "spy", **inputs)
        assert jax.config.jax_enable_x64
    assert seen[3:] == [{"bfloat16"}, {"float32"}, {"float64"}]
    assert [row.digits for row in double.rows] == [16.0] * 3


def test_tf32_where_there_is_a_gpu_and_float32_is_not_rounded_there(monkeypatch):
    asked = []

    @sf.metric
    def products(objective, key):
        """Looks at the precision of matrix products."""
        asked.append((jax.config.jax_default_matmul_precision, str(objective.params.dtype)))
        return sf.Estimate(1.0, 0.0, True)

    objective = bowl(jnp.array([0.1, 0.2]))
    assert "tensorfloat32: none on this platform (cpu)" in str(
        sf.precision_table(objective, "products")
    )
    del asked[:]
    monkeypatch.setattr(precision.jax, "default_backend", lambda: "gpu")
    table = sf.precision_table(objective, "products")
    assert table.formats == ("bfloat16", "tensorfloat32", "float32", "float64")
    assert asked == [
        ("highest", "bfloat16"), ("tensorfloat32", "float32"), ("highest", "float32"),
        ("highest", "float64"),
    ]  # fmt: skip
    assert "none on this platform" not in str(table)


def test_random_metrics_are_compared_by_their_errors():
    @sf.metric
    def noisy(objective, key):
        """Other draws in each format, biased in bfloat16."""
        draws = jax.random.normal(key, (100,), objective.params.dtype)
        bias = 1.0 if objective.params.dtype == jnp.bfloat16 else 0.0
        return sf.Estimate.from_samples(2 + bias + 0.1 * draws)

    table = sf.precision_table(bowl(jnp.array([0.1, 0.2])), "noisy")
    rows = by_format(table)
    for row in rows.values():
        error = np.hypot(row.estimate.standard_error, row.reference.standard_error)
        difference = abs(row.estimate.value - row.reference.value)
        assert row.errors == pytest.approx(difference / error)
    assert rows["float32"].errors < 4
    assert rows["bfloat16"].errors > 30
    line = next(line for line in str(table).splitlines() if line.startswith("noisy"))
    assert line.split()[1:3] == ["0.3", "digits"]  # off by a half, far beyond the errors
    assert re.search(r"\d\.\d s\.e\. of 0\.[67]\d?%", line)


@pytest.mark.parametrize(
    ("low", "high", "digits"),
    [(1.0, 1.0625, 1.51), (2.0, 2.0, 16), (0.0, 1.0, 0), (1.0, np.inf, 0), (0.0, 0.0, 0)],
)
def test_a_bisection_has_no_more_digits_than_its_bracket(low, high, digits):
    bracket = {"low": np.array(low), "high": np.float64(high), "evaluations": np.array(9)}

    @sf.metric
    def bisected(objective, key):
        """The middle of a bracket."""
        return sf.Estimate(1.0, 0.0, True, bracket)

    table = sf.precision_table(bowl(jnp.array([0.1, 0.2])), "bisected")
    assert [row.digits for row in table.rows] == pytest.approx([digits] * 3, abs=0.01)
    assert f"{digits:.1f} digits" in str(table)
    assert "digits of a bisection: no more than the width of its last bracket" in str(table)


def test_the_bisections_of_ours_leave_their_brackets():
    """To 1/16 of the value, which is the middle: 1.5 digits."""
    for name in ("critical_sharpness", "worst_case_radius", "worst_case_radius_magnitude"):
        found = sf.measure(network(), name)
        row = precision.PrecisionRow(name, {}, "float32", found, found)
        assert row.digits == row.resolution == pytest.approx(1.5, abs=0.35)


def test_a_loss_that_is_not_finite_in_a_format_is_a_failure_there():
    steep = sf.Objective.from_function(
        lambda w, batch: jnp.sum(w**2) + jnp.inf, jnp.array([0.1, 0.2]), ONE
    )
    with pytest.raises(sf.InputError, match="^loss: is inf at these parameters"):
        sf.precision_table(steep, "parameter_norm")
    small = sf.Objective.from_function(
        lambda w, batch: jnp.where(w.dtype == jnp.bfloat16, jnp.inf, 1.0) * jnp.sum(w**2),
        jnp.array([0.1, 0.2]), ONE,
    )  # fmt: skip
    rows = by_format(sf.precision_table(small, "gradient_norm"))
    assert "loss: is inf at these parameters" in str(rows["bfloat16"].estimate.details["error"])
    assert rows["float32"].digits > 6
    rows = by_format(sf.precision_table(small, "parameter_norm"))
    assert rows["bfloat16"].digits > 2, "it does not look at the loss"


def test_failures_and_lost_certificates_are_said():
    @sf.metric
    def fragile(objective, key):
        """Fails in bfloat16, is not finite in float32."""
        kind = objective.params.dtype
        if kind == jnp.bfloat16:
            raise NotImplementedError("no such kernel")
        if kind == jnp.float32:
            return sf.Estimate(float("inf"), 0.0, False)
        return sf.Estimate(1.0, 0.0, True)

    table = sf.precision_table(bowl(jnp.array([0.1, 0.2])), ["fragile", "parameter_norm"])
    rows = by_format(sf.precision_table(bowl(jnp.array([0.1, 0.2])), "fragile"))
    assert np.isnan(rows["bfloat16"].digits)
    assert np.isnan(rows["float32"].digits)
    line = next(line for line in str(table).splitlines() if line.startswith("fragile"))
    assert line.split() == ["fragile", "NotImplementedError", "not", "finite", "!", "1"]
    assert "failed: fragile in bfloat16: NotImplementedError: no such kernel" in str(table)
    assert "failed: fragile in float32" not in str(table)
    assert len(table.rows) == 6


def test_curvature_keeps_its_digits_in_float32():
    specs = ["gradient_norm", "fisher_rao_norm", "path_norm", "hessian_top_eigenvalues"]
    said = []
    table = sf.precision_table(network(), specs, say=said.append)
    assert isinstance(table, PrecisionTable)
    assert said[0] == "bfloat16: gradient_norm"
    assert said[-1] == "float64: hessian_top_eigenvalues"
    for row in table.rows:
        if row.format == "float32":
            assert row.errors < 3 if row.errors is not None else row.digits > 5
    page = table.markdown().splitlines()
    assert page[0] == "| metric | bfloat16 | float32 | float64 |"
    assert page[1] == "|---|---|---|---|"
    assert page[2].startswith("| gradient_norm | ")
    assert table.batch_norm == "running"
    assert "- batch norm: running" in page


def test_bad_input():
    objective = bowl(jnp.array([0.1, 0.2]))
    with pytest.raises(sf.InputError, match="did you mean 'parameter_norm'"):
        sf.precision_table(objective, "parameter_nrm")
    with pytest.raises(sf.InputError, match="path_norm: .*no outputs"):
        sf.precision_table(objective, "path_norm")
    with pytest.raises(sf.InputError, match="^parameters: hold numbers that are not finite"):
        sf.precision_table(bowl(jnp.array([0.1, jnp.nan])), "parameter_norm")


def test_of_all_metrics_those_are_skipped_that_the_state_does_not_give():
    objective = network()
    inputs = {"opt_state": optax.sgd(0.1).init(objective.params)}
    asked, skipped = chosen(objective, None, inputs)
    assert "holds no second moments" in skipped["preconditioned_sharpness"]
    assert "preconditioned_sharpness" not in [name for name, _ in asked]


def test_products_in_one_chunk_are_made_in_bfloat16_too():
    """There one linearization, of a dtype, takes every vector."""
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1))
    inputs = jax.random.normal(jax.random.key(0), (20, 5))
    data = inputs, jnp.arange(20) % 3
    params, state = model.init(jax.random.key(1), inputs)
    objective = sf.Objective.from_model(model, params, state, data, chunk=20)
    names = ["hessian_trace", "hessian_top_eigenvalues", "ggn_trace"]
    few = {"layerwise_hessian": {"probes": 2, "steps": 5}}
    table = str(sf.precision_table(objective, [*names, few]))
    assert "failed" not in table
    assert "hessian_top_eigenvalues" in table
