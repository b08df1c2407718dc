"""The table of changes: its verdicts, what it leaves out or refuses, how it reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audit.changed import by_change, objective_of

import sharpflat as sf
from sharpflat.audit import InvarianceTable, verdicts
from sharpflat.audit.verdicts import verdict
from sharpflat.registry import metrics

pytestmark = pytest.mark.usefixtures("x64")


def estimate(value, error=0.0, converged=True):
    return sf.Estimate(value, error, converged)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (estimate(1.0), estimate(1.004), "invariant"),
        (estimate(1.0), estimate(1.01), "undecided"),
        (estimate(1.0), estimate(1.03), "fooled"),
        (estimate(-1.0), estimate(1.0), "fooled"),
        (estimate(0.0), estimate(0.0), "invariant"),
        (estimate(0.0), estimate(1.0), "fooled"),
        # within three combined standard errors, and beyond
        (estimate(1.0, 0.02), estimate(1.08, 0.02), "invariant"),
        (estimate(1.0, 0.02), estimate(1.2, 0.02), "fooled"),
        # an error so large that nothing would be noticed proves nothing
        (estimate(1.0, 0.2), estimate(1.08, 0.2), "undecided"),
        (estimate(1.0, 0.2), estimate(1.00001, 0.2), "invariant"),
        (estimate(1.0, 0.2), estimate(3.0, 0.2), "fooled"),
        # no certificate, or an error that is not known: only a factor of two counts
        (estimate(1.0, converged=False), estimate(1.0), "undecided"),
        (estimate(1.0), estimate(1.5, converged=False), "undecided"),
        (estimate(1.0), estimate(2.5, converged=False), "fooled"),
        (estimate(1.0, None), estimate(1.5, None), "undecided"),
        (estimate(1.0, None), estimate(2.5, None), "fooled"),
        (estimate(1.0, None), estimate(1.004, None), "invariant"),
        (estimate(1.0, None), estimate(1.01, None), "undecided"),
        (estimate(1.0, 0.5, False), estimate(2.5), "undecided"),
        (estimate(np.nan), estimate(1.0), "undecided"),
        (estimate(np.inf), estimate(np.inf), "undecided"),
    ],
)
def test_verdicts_of_estimates(before, after, expected):
    assert verdict(before, after) == expected
    assert verdict(after, before) == expected


def test_what_the_objective_and_the_inputs_do_not_allow_is_listed():
    for name in [name for name in metrics if name not in ("parameter_norm", "path_norm")]:
        if not metrics[name].inputs:
            del metrics._entries[name]

    @sf.metric(checks=(lambda objective, arguments: objective.restrict("nowhere"),))
    def out_of_reach(objective, key):
        """Never measured."""

    table = sf.invariance_table(objective_of(), opt_state=(), optimizer=None)
    assert {row.metric for row in table.rows} == {"parameter_norm", "path_norm"}
    assert table.skipped["distance_from_initialization"] == "needs 'initial_params'"
    assert table.skipped["out_of_reach"].startswith("parameters: none is called 'nowhere'")
    assert "holds no second moments known" in table.skipped["preconditioned_sharpness"]
    assert "skipped: distance_from_initialization: needs 'initial_params'" in str(table)
    for asked, words in (
        ("preconditioned_sharpness", "needs 'opt_state'"),
        ("distance_from_initialization", "needs 'initial_params'"),
        ("out_of_reach", "none is called 'nowhere'"),
        ("path_nrm", "did you mean 'path_norm'"),
        ({"path_norm": {"rho": 1}}, "unknown key 'rho'"),
        ({}, "expected a name or"),
        ([], "none is asked for"),
    ):
        with pytest.raises(sf.InputError, match=words):
            sf.invariance_table(objective_of(), asked)


def test_refusals():
    objective = objective_of()
    loss = sf.Objective.from_function(lambda w, batch: w**2, jnp.ones(()), objective.data)
    with pytest.raises(sf.InputError, match="invariance_table: an objective made by from_function"):
        sf.invariance_table(loss)
    with pytest.raises(sf.InputError, match="alpha"):
        sf.invariance_table(objective, "path_norm", alpha=1.0)
    with pytest.raises(sf.InputError, match="'Dense_7'; did you mean 'Dense_0'"):
        sf.invariance_table(objective, "path_norm", layer="Dense_7")
    with pytest.raises(sf.InputError, match="unknown argument 'intial_params'"):
        sf.invariance_table(objective, "path_norm", intial_params=objective.params)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, objective.params)
    state = objective.model_state
    broken = sf.Objective.from_model(objective.model, broken, state, objective.data)
    with pytest.raises(sf.InputError, match="^parameters: hold numbers that are not finite"):
        sf.invariance_table(broken, "path_norm")
    matrix = {"w": jnp.ones((3, 2))}
    unnamed = sf.Objective.from_model(
        sf.Model.from_functions(lambda key, x: matrix, lambda w, x: x @ w["w"]),
        matrix, {}, (jnp.ones((4, 3)), jnp.zeros(4, int)),
    )  # fmt: skip
    with pytest.raises(sf.InputError, match="no change keeps the function"):
        sf.invariance_table(unnamed, "parameter_norm")


def test_a_metric_that_fails_is_named_and_leaves_the_others():
    @sf.metric
    def fragile(objective, key):
        """Fails where parameters are large."""
        if sf.measure(objective, "parameter_norm").value > norm:
            raise RuntimeError("too far out")
        return sf.Estimate(1.0, 0.0, True)

    objective = objective_of()
    norm = 1.001 * sf.measure(objective, "parameter_norm").value
    table = sf.invariance_table(objective, ["fragile", "path_norm"], alpha=100.0)
    rows = by_change(table)
    line = next(line for line in str(table).splitlines() if line.startswith("fragile"))
    assert line.split() == ["fragile", "1", "failed", "×1", "invariant", "failed"]
    assert table.invariant == ["path_norm"]
    assert rows["relu_rescaling"].verdict == "undecided"
    assert np.isnan(rows["relu_rescaling"].factor)
    assert rows["permuted_units"].verdict == "invariant"
    assert "failed: fragile, relu_rescaling: RuntimeError: too far out" in str(table)
    assert "failed: fragile, permuted_units" not in str(table)
    assert by_change(table, 1)["relu_rescaling"].verdict == "invariant"


def test_factors_have_errors():
    def factor_error(before, after):
        return verdicts.factor_error(sf.Estimate(*before, True), sf.Estimate(*after, True))

    assert factor_error((2.0, 0.3), (6.0, 0.8)) == pytest.approx(0.5 * np.hypot(0.8, 3 * 0.3))
    assert factor_error((2.0, 0.0), (6.0, 0.0)) == 0
    assert factor_error((0.0, 0.0), (0.0, 0.0)) == 0
    assert factor_error((2.0, 0.3), (2.0001, 0.3)) == 0, "the same numbers were drawn"
    assert factor_error((2.0, None), (6.0, 0.1)) is None
    assert factor_error((0.0, 0.1), (6.0, 0.1)) is None


def test_seeds_and_layers_are_those_asked_for():
    seen = []

    @sf.metric
    def draw(objective, key):
        """A random number."""
        seen.append(float(jax.random.normal(key)))
        return sf.Estimate(seen[-1], 0.0, True)

    objective = objective_of(depth=3)
    table = sf.invariance_table(objective, "draw", seed=7, layer="Dense_1")
    assert seen == [float(jax.random.normal(jax.random.key(7)))] * 4
    assert [change.layers for change in table.changes] == [
        ("Dense_1", "Dense_2"), ("Dense_1", "Dense_2"), ("Dense_3",),
    ]  # fmt: skip
    assert table.not_made == (
        "batch_norm_scale: no layer that fits is called 'Dense_1'; none is allowed here",
    )


def test_the_table_reads():
    objective, said = objective_of(batch_norm=True), []
    before = jax.tree.map(np.copy, (objective.params, objective.model_state))
    specs = ["parameter_norm", {"hessian_trace": {"probes": 2}}, "path_norm"]
    table = sf.invariance_table(objective, specs, say=said.append)
    assert isinstance(table, InvarianceTable)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, before, (objective.params, objective.model_state))
    )
    assert table.batch_norm == "running"
    assert len(table.rows) == 3 * 4
    assert len(said) == 3 * 5
    assert said[:4] == [
        "as it is: parameter_norm", "as it is: hessian_trace[probes=2]", "as it is: path_norm",
        "relu_rescaling: parameter_norm",
    ]  # fmt: skip
    text, page = str(table), table.markdown()
    for shown in (text, page):
        head = "relu_rescaling: Dense_0, BatchNorm_0, Dense_1, α = 4; outputs moved by 0 of their"
        assert head in shown
        assert "hessian_trace[probes=2]" in shown
        assert f"×{table.rows[0].factor:.4g} {table.rows[0].verdict}" in shown
        assert "function fools (each by the worst of them): " in shown
        assert "no such change moves: path_norm\n" in shown
        assert "batch norm: running\n" in shown
        assert "certified, and equal within 0.5% plus three standard errors (none where" in shown
        assert "by a factor of two, where a certificate or an error is lacking" in shown
        (norm,) = (line for line in shown.splitlines() if line.strip("| ").startswith("parameter"))
        assert norm.strip("| ").endswith("moved"), "by the logits' change, which fools nobody"
        assert norm.count("moved") == 1
        assert all(name in shown for name in table.fooled)
    assert len({line.index("relu_rescaling") for line in text.splitlines()[:1]}) == 1
    lines = page.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|") == 7
    assert lines[5] == ""
    assert lines[6].startswith("- ")
