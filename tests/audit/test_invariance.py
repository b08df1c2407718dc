"""Which metrics a change of parametrisation moves: what theory says, and what the table says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.audit import InvarianceTable, measuring, verdicts
from sharpflat.audit.moments import followed
from sharpflat.audit.reparametrisations import batch_norm_scale, permuted_units, relu_rescaling
from sharpflat.audit.verdicts import verdict
from sharpflat.registry import metrics
from sharpflat.runs.setup import fill_registries

fill_registries()
pytestmark = pytest.mark.usefixtures("x64")
ALPHA = 3.0
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


@pytest.fixture
def own():
    """A test's own metrics are gone after it."""
    before = dict(metrics._entries)
    yield
    metrics._entries = before


def objective_of(seed=0, **network):
    """Random parameters, biases and averages, in the default precision."""
    rng = np.random.default_rng(seed)

    def random(like):
        return jnp.asarray(0.7 * rng.normal(size=like.shape), jnp.result_type(float))

    inputs = random(np.empty((30, 4)))
    model = sf.Model.of(sf.models["mlp"](3, **{"width": 5, "depth": 1, **network}))
    params, state = jax.eval_shape(model.init, jax.random.key(seed), inputs)
    params = jax.tree.map(random, params)
    state = jax.tree.map(lambda like: jnp.abs(random(like)), state)
    data = (inputs, jnp.asarray(rng.integers(0, 3, 30)))
    return sf.Objective.from_model(model, params, state, data, chunk=15)


def dense_hessian(objective):
    """∇²L, all parameters in a row, and the name of each one's array."""
    flat, unravel = ravel_pytree(objective.params)
    hessian = jax.hessian(lambda w: objective.loss(unravel(w)))(flat)
    sizes = [leaf.size for leaf in jax.tree.leaves(objective.params)]
    return np.asarray(hessian), np.repeat(objective.layers(), sizes)


def by_change(table, index=0):
    """The rows of one of the metrics by the change's name."""
    names = list(dict.fromkeys(row.metric for row in table.rows))
    return {row.change: row for row in table.rows if row.metric == names[index]}


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


def test_a_measure_of_one_layer_does_not_escape_the_change(own):
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


def after_gradients(rule, objective):
    """The state that three parts of the examples leave, one after another."""
    rules = {
        "adam": optax.scale_by_adam(), "rmsprop": optax.scale_by_rms(),
        "adagrad": optax.scale_by_rss(), "adagrad from 0": optax.scale_by_rss(0.0),
    }  # fmt: skip
    state = rules[rule].init(objective.params)
    for rows in np.split(np.arange(objective.data.size), 3):
        gradient = objective.subset(rows).value_and_grad(objective.params)[1]
        _, state = rules[rule].update(gradient, state)
    return state


@pytest.mark.parametrize("rule", ["adam", "adagrad", "adagrad from 0", "rmsprop"])
def test_the_optimizers_moments_follow_the_change(rule):
    """w' = D w, g' = g / D, so P' = P / D where ε is nothing: what Adam sees moves by 1 / D."""
    objective = objective_of(batch_norm=True)
    state = after_gradients(rule, objective)
    numbers = {"b1": 0.9, "b2": 0.999, "decay": 0.9}
    if "adagrad" in rule:
        numbers["initial_accumulator_value"] = 0.0 if rule == "adagrad from 0" else 0.1
    table = sf.invariance_table(
        objective, {"preconditioned_sharpness": {"tolerance": 1e-6, "epsilon": 1e-20}},
        alpha=ALPHA, opt_state=(state,), hyperparams=numbers,
    )  # fmt: skip
    rows = by_change(table)
    assert rows["permuted_units"].factor == pytest.approx(1, rel=1e-4)
    for change in table.changes:
        if not change.preserves:
            assert jax.tree.all(
                jax.tree.map(np.array_equal, followed(state, change, numbers), state)
            )
            continue
        anew = after_gradients(rule, change.objective)
        np.testing.assert_allclose(
            *(ravel_pytree(s)[0] for s in (followed(state, change, numbers), anew))
        )
        after = sf.measure(
            change.objective, "preconditioned_sharpness", opt_state=anew, epsilon=1e-20,
            tolerance=1e-6,
        )  # fmt: skip
        assert rows[change.name].after.value == pytest.approx(after.value, rel=1e-5)
    assert rows["relu_rescaling"].verdict == rows["batch_norm_scale"].verdict == "fooled"


def test_what_adagrads_sums_began_with_is_never_guessed():
    """Refused before any work by who reads them; all others are measured."""
    objective, said = objective_of(), []
    state = optax.ScaleByRssState(jax.tree.map(lambda w: 0.2 * jnp.ones_like(w), objective.params))
    ours = {"name": "adagrad"}
    told, low = {"initial_accumulator_value": 0.15}, {"initial_accumulator_value": 0.3}
    for numbers, why in (({}, "say what they began with"), (low, "below the 0.3")):
        for asked in ("preconditioned_sharpness", ["parameter_norm", "preconditioned_sharpness"]):
            with pytest.raises(sf.InputError, match=f"^opt_state: .*{why}"):
                sf.invariance_table(
                    objective, asked, opt_state=state, hyperparams=numbers, say=said.append
                )
    assert not said
    table = sf.invariance_table(objective, "parameter_norm", opt_state=state)
    assert {row.metric for row in table.rows} == {"parameter_norm"}
    for wrap in (lambda inner: inner, lambda inner: (inner,)):
        injected = optax.InjectStatefulHyperparamsState(
            count=0, hyperparams=told, hyperparams_states={}, inner_state=wrap(state)
        )
        change = relu_rescaling(objective, alpha=ALPHA)
        found = [
            jax.tree.leaves(followed(one, change, numbers))[-1]
            for one, numbers in ((injected, {}), (state, told), (state, ours))
        ]
        np.testing.assert_array_equal(found[0], found[1])
        assert not np.array_equal(found[1], found[2])


def test_where_all_are_asked_for_those_that_would_guess_are_skipped(monkeypatch):
    objective, readers = objective_of(), ("parameter_norm", "preconditioned_sharpness")
    few = {name: entry for name, entry in sf.metrics.items() if name in readers}
    monkeypatch.setattr(measuring, "metrics", few)
    state = optax.ScaleByRssState(jax.tree.map(jnp.ones_like, objective.params))
    table = sf.invariance_table(objective, opt_state=state, hyperparams={})
    assert {row.metric for row in table.rows} == {"parameter_norm"}
    assert "say what they began with" in table.skipped["preconditioned_sharpness"]


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


def test_what_the_objective_and_the_inputs_do_not_allow_is_listed(own):
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


def test_a_metric_that_fails_is_named_and_leaves_the_others(own):
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


def test_seeds_and_layers_are_those_asked_for(own):
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
        assert "function fools: " in shown
        assert "no such change moves: path_norm\n" in shown
        assert "batch norm: running\n" in shown
        assert "certified, and equal within 0.5% and three standard errors, these no" in shown
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
