"""measure: one metric or many, inputs, errors, shared passes."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ONE, quadratic

import sharpflat as sf
from sharpflat.objective import sharing
from sharpflat.registry import metrics
from sharpflat.sharpness import measure_each

BOWL = np.diag([3.0, 2.0, 1.0])
CALLS = []
KEY = jax.random.key(0)


def draw(objective, key, scale):
    step = scale * jax.random.normal(key, (3,))
    return objective.loss({"w": objective.params["w"] + step})


def expensive(objective, key):
    CALLS.append(1)
    return 1.0


@pytest.fixture
def own():
    """User's metrics, gone after the test."""

    @sf.metric
    def mean_loss_nearby(objective, key, *, scale: sf.Positive = 0.1, draws: int = 200):
        """Mean loss under Gaussian noise."""
        return sf.Estimate.from_samples(sf.map_draws(draw, objective, key, draws, scale))

    @sf.metric
    def distance(objective, key, *, initial_params):
        """Distance from the start."""
        step = sf.trees.sub(objective.params, initial_params)
        return sf.Estimate(sf.trees.norm(step), 0.0, True)

    @sf.metric
    def sharing_one(objective, key):
        """Shares a pass."""
        return sf.Estimate(objective.shared(expensive, key), 0.0, True)

    @sf.metric
    def sharing_two(objective, key):
        """Shares it too."""
        return sf.Estimate(objective.shared(expensive, key), 0.0, True)

    @sf.metric
    def broken(objective, key):
        """Raises."""
        raise RuntimeError("no luck")

    yield
    for name in ("mean_loss_nearby", "distance", "sharing_one", "sharing_two", "broken"):
        del metrics._entries[name]


def test_one_by_name_and_several_in_order(own):
    objective = quadratic(BOWL)
    one = sf.measure(objective, "hessian_top_eigenvalues", k=2)
    several = sf.measure(
        objective, ["keskar_sharpness", {"hessian_top_eigenvalues": {"k": 2}}, "mean_loss_nearby"]
    )
    assert isinstance(several, list)
    assert several[1].value == one.value
    assert len(several) == 3


def test_draws_have_a_standard_error_that_covers(own):
    """E ½ δᵀHδ = ½ σ² tr H."""
    estimate = sf.measure(quadratic(BOWL), "mean_loss_nearby", scale=0.1, draws=400)
    assert abs(estimate.value - 0.5 * 0.01 * 6) < 4 * estimate.standard_error
    assert 0 < estimate.standard_error < 0.01


def test_inputs_are_handed_over_and_missing_ones_named(own):
    objective = quadratic(BOWL, [1.0, 2.0, 2.0])
    start = {"w": jnp.zeros(3)}
    assert sf.measure(objective, "distance", initial_params=start).value == pytest.approx(3.0)
    assert sf.measure(objective, ["distance"], initial_params=start)[0].value == pytest.approx(3.0)
    with pytest.raises(sf.InputError, match="distance: needs 'initial_params'"):
        sf.measure(objective, "distance")


def test_passes_are_shared_within_one_call_only(own):
    CALLS.clear()
    sf.measure(quadratic(BOWL), ["sharing_one", "sharing_two"])
    assert len(CALLS) == 1
    sf.measure(quadratic(BOWL), "sharing_one")
    assert len(CALLS) == 2


def test_shared_passes_of_passing_objectives_are_not_mixed_up(own):
    objective = sf.Objective.from_function(
        lambda w, b: jnp.mean(b.labels), jnp.zeros(1), (jnp.ones((40, 1)), jnp.arange(40.0))
    )
    with sharing():
        for i in range(40):
            part = objective.subset([i])
            assert part.shared(lambda o, key, a: float(o.loss(o.params)), KEY, jnp.ones(2)) == i


def test_shared_passes_are_told_apart_by_structure_shape_and_type(own):
    objective, given = quadratic(BOWL), []

    def remember(objective, key, *args):
        given.append(args)
        return len(given)

    different = [(1, None), (None, 1), ({"a": 1},), ({"b": 1},), (1.0,)]
    different += [(np.zeros(4),), (np.zeros((2, 2)),), (np.zeros(8, np.float32),)]
    with sharing():
        assert [objective.shared(remember, KEY, *args) for args in different] == [*range(1, 9)]
        assert objective.shared(remember, KEY, {"a": 1}) == 3


def test_what_is_not_finite_has_not_converged(own):
    """√|w| has an infinite curvature at 0."""
    cusp = sf.Objective.from_function(
        lambda w, batch: jnp.sum(jnp.sqrt(jnp.abs(w) + 1e-40)), jnp.zeros(40),
        (jnp.ones((1, 1)), jnp.ones(1)),
    )  # fmt: skip
    metrics = ["hessian_trace", "hessian_frobenius_norm", "hessian_top_eigenvalues"]
    with pytest.warns(UserWarning, match="the curvature here is not finite"):
        found = sf.measure(cusp, metrics)
    for estimate in found:
        assert not np.isfinite(estimate.value)
        assert not estimate.converged


def test_an_error_ends_only_its_own_metric(own):
    requests = [("broken", {}), ("hessian_top_eigenvalues", {})]
    broken, whole = measure_each(quadratic(BOWL), requests, 0, {})
    assert str(broken.error) == "no luck"
    assert whole.estimate.value == pytest.approx(3.0, rel=1e-3)
    with pytest.raises(RuntimeError, match="no luck"):
        sf.measure(quadratic(BOWL), "broken")


@pytest.mark.parametrize(
    ("spec", "keywords", "message"),
    [
        ("keskar_sharpnes", {}, "did you mean 'keskar_sharpness'"),
        ("hessian_top_eigenvalues", {"kk": 2}, "unknown key 'kk'"),
        ("hessian_top_eigenvalues", {"k": 0}, "hessian_top_eigenvalues.k"),
        (["hessian_top_eigenvalues"], {"kk": 2}, "unknown argument 'kk'"),
        (
            ["hessian_top_eigenvalues"],
            {"k": 2},
            "go with it, as {'hessian_top_eigenvalues': {'k': 2}}",
        ),
        ([{"a": {}, "b": {}}], {}, "expected a name or"),
    ],
)
def test_bad_requests_are_refused_before_any_work(spec, keywords, message):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(quadratic(BOWL), spec, **keywords)


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("distance_from_initialization", {"initial_params": {"w": jnp.zeros(4)}}, "has shape"),
        ("preconditioned_sharpness", {"opt_state": ()}, "no second moments"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_before_other_metrics_work(own, name, inputs, message):
    CALLS.clear()
    with pytest.raises(sf.InputError, match=f"^{name}: .*{message}"):
        sf.measure(quadratic(BOWL), ["sharing_one", name], **inputs)
    assert not CALLS


def test_of_a_list_the_others_results_stay(own):
    line = metrics["broken"].function.__code__.co_firstlineno + 3
    reason = f"RuntimeError: no luck (test_measure.py, line {line})"
    with pytest.warns(UserWarning, match=re.escape(f"broken: {reason}")):
        whole, broken = sf.measure(quadratic(BOWL), ["hessian_top_eigenvalues", "broken"])
    assert whole.value == pytest.approx(3.0, rel=1e-3)
    assert np.isnan(broken.value)
    assert not broken.converged
    assert str(broken.details["error"]) == reason


@pytest.mark.parametrize("seed", [1.0, "1", -1, 2**32, None, True, np.True_])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(sf.InputError, match="seed: expected a whole number"):
        sf.measure(quadratic(BOWL), "parameter_norm", seed=seed)


def test_the_same_seed_of_any_integer_type(own):
    values = [
        sf.measure(quadratic(BOWL), "mean_loss_nearby", seed=seed).value
        for seed in (3, np.int64(3), jnp.int32(3), 4)
    ]
    assert values[0] == values[1] == values[2] != values[3]


def test_what_is_no_objective_is_refused():
    with pytest.raises(sf.InputError, match="objective: expected an Objective, got function"):
        sf.measure(lambda w: w, "parameter_norm")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_told_of_by_name(own, value):
    @sf.metric
    def endless(objective, key):
        """No number."""
        return sf.Estimate(value, 0.0, True)

    try:
        with pytest.warns(UserWarning, match=f"endless: its value is {value}, not a finite num"):
            assert not sf.measure(quadratic(BOWL), "endless").converged
    finally:
        del metrics._entries["endless"]


def test_all_that_can_be_measured_by_name(own, monkeypatch):
    names = ["hessian_trace", "distance", "ggn_trace", "fisher_trace", "parameter_norm"]
    monkeypatch.setattr(metrics, "_entries", {name: metrics[name] for name in names})
    objective = quadratic(BOWL, [1.0, 2.0, 2.0])
    said = (
        "all: left out distance: needs 'initial_params'; pass it to measure; fisher_trace, "
        "ggn_trace: outputs: an objective made by from_function has no outputs"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(said)}$"):
        found = sf.measure(objective, "all", seed=1)
    assert list(found) == ["hessian_trace", "parameter_norm"]
    assert found["hessian_trace"].value == sf.measure(objective, "hessian_trace", seed=1).value
    with pytest.warns(UserWarning, match="left out fisher_trace"):
        found = sf.measure(objective, "all", initial_params={"w": jnp.zeros(3)})
    assert found["distance"].value == pytest.approx(3.0)
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(sf.InputError, match="unknown argument 'draws'"),
    ):
        sf.measure(objective, "all", draws=3)


def touched(objective, key):
    pytest.fail("work was done before the request was refused")


@pytest.fixture
def first(own):
    """A metric that must not be reached."""

    @sf.metric
    def reached(objective, key):
        """Fails the test."""
        return touched(objective, key)

    yield "reached"
    del metrics._entries["reached"]


def network(policy="running", chunk=None):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32), jnp.asarray(rng.integers(0, 3, 40))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1, batch_norm=True))
    params, state = model.init(KEY, data[0])
    return sf.Objective.from_model(model, params, state, data, batch_norm=policy, chunk=chunk)


@pytest.mark.parametrize(
    ("objective", "spec", "message"),
    [
        (lambda: quadratic(BOWL), {"hessian_top_eigenvalues": {"k": 4}}, "k: 4 is above the 3 par"),
        (lambda: quadratic(BOWL), {"sam_sharpness": {"rho": 0.0}}, "sam_sharpness.rho"),
        (lambda: quadratic(BOWL), {"worst_case_sharpness": {"rho": -1}}, "sharpness.rho: .*great"),
        (lambda: quadratic(BOWL), "ggn_trace", "ggn_trace: outputs: an objective made by from_fun"),
        (lambda: quadratic(BOWL), "pac_bayes_flatness", "pac_bayes_flatness: outputs"),
        (lambda: quadratic(BOWL), "normalized_margin", "normalized_margin: .*outputs"),
        (lambda: quadratic(BOWL), "distance_from_initialization", "needs 'initial_params'"),
        (lambda: quadratic(BOWL), {"batch_sharpness": {"batch_size": 9}}, "batch_size: 9 is above"),
        (lambda: quadratic(BOWL), {"hessian_trace": {"parameters": "b*"}}, "none is called 'b.'"),
        (lambda: network("batch"), "gradient_diversity", "gradient_diversity: .*'batch'"),
        (
            lambda: network("batch", 30),
            "gradient_norm",
            "chunk: 30 does not divide the 40 examples",
        ),
        (
            lambda: quadratic(BOWL, [np.nan, 0, 0]),
            "gradient_norm",
            "^parameters: hold numbers that",
        ),
        (
            lambda: sf.Objective.from_function(
                jnp.sum, jnp.ones(1), (jnp.ones((0, 1)), jnp.ones(0))
            ),
            "gradient_norm",
            "data: the data set is empty",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name_before_any_work(
    first, objective, spec, message
):
    with pytest.raises(sf.InputError, match=message):
        sf.measure(objective(), [first, spec])


def with_average(value):
    """Batch norm's averages with one number replaced."""
    whole = network()
    leaves, structure = jax.tree.flatten(whole.model_state)
    broken = [leaves[0].at[0].set(value), *leaves[1:]]
    return replace(whole, model_state=jax.tree.unflatten(structure, broken))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda v: quadratic(BOWL, floor=v), "loss: is {value} at these parameters; nothing can"),
        (lambda v: quadratic(BOWL, [v, 0, 0]), "parameters: hold numbers that are not finite"),
        (lambda v: held_fixed(v), "parameters: hold numbers that are not finite"),
        (with_average, "model_state: hold numbers that are not finite"),
    ],
    ids=["loss", "parameters", "held fixed", "averages"],
)
def test_nothing_is_measured_where_numbers_are_not_finite(first, broken, message, value):
    with pytest.raises(sf.InputError, match=f"^{message.format(value=value)}"):
        sf.measure(broken(value), [first, "parameter_norm"])


def held_fixed(value):
    """The broken number is among the parameters that `restrict` holds fixed."""
    params = {"a": jnp.ones(2), "b": jnp.full(1, value)}
    whole = sf.Objective.from_function(lambda w, batch: jnp.sum(w["a"] ** 2), params, ONE)
    return whole.restrict("a")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_inputs_are_finite_too(first, value):
    objective, start = quadratic(BOWL), {"w": jnp.array([1.0, value, 0.0])}
    said = "^distance_from_initialization: initial_params: hold numbers that are not finite"
    with pytest.raises(sf.InputError, match=said):
        sf.measure(objective, [first, "distance_from_initialization"], initial_params=start)
    (norm,) = sf.measure(objective, ["parameter_norm"], initial_params=start)
    assert norm.converged, "it takes none"


def test_a_state_may_hold_what_is_not_finite_where_nothing_reads_it():
    """As `optax.contrib.reduce_on_plateau` does, whose best value begins at infinity."""
    state = (optax.ScaleByRssState({"w": jnp.ones(3)}), {"best_value": jnp.inf})
    estimate = sf.measure(quadratic(BOWL), "preconditioned_sharpness", opt_state=state)
    assert np.isfinite(estimate.value)


def test_a_loss_that_raises_is_the_error_of_those_that_need_it():
    def loss(params, batch):
        return jax.pure_callback(failing, jax.ShapeDtypeStruct((), jnp.float32), params)

    def failing(params):
        raise RuntimeError("no luck")

    objective = sf.Objective.from_function(loss, jnp.ones(3), ONE)
    with pytest.warns(UserWarning, match="low_pass_filter"):
        norm, mean = sf.measure(objective, ["parameter_norm", "low_pass_filter"])
    assert norm.converged
    assert "no luck" in str(mean.details["error"])


def test_from_ratio():
    """The delta method on pairs, and the ratio of sums, not the mean of ratios."""
    above, below = np.array([1.0, 4.0, 10.0]), np.array([1.0, 2.0, 2.0])
    estimate = sf.Estimate.from_ratio(above, below)
    assert estimate.value == 3
    expected = np.std(above - 3 * below, ddof=1) / np.sqrt(3) / below.mean()
    assert estimate.standard_error == pytest.approx(expected)
    assert not sf.Estimate.from_ratio([1.0, 2.0], [0.0, 0.0]).converged
    with pytest.raises(ValueError, match="expected pairs"):
        sf.Estimate.from_ratio([1.0], [1.0, 2.0])


def test_from_samples():
    estimate = sf.Estimate.from_samples([1.0, 2.0, 3.0])
    assert estimate.value == 2.0
    assert estimate.standard_error == pytest.approx(1 / np.sqrt(3))
    assert sf.Estimate.from_samples([1.0]).standard_error is None
    assert not sf.Estimate.from_samples([1.0, np.nan, 2.0]).converged
