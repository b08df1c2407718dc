"""What every registered metric, model, data set, optimizer and figure keeps to.

A new entry is held to this by being registered: nothing here names one.
"""

import doctest
import importlib
import inspect
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sharpflat as sf
from sharpflat.validation import InputError

IMAGES = {"c1": (2, 32, 32, 3), "c2": (2, 32, 32, 3), "c3": (2, 32, 32, 3), "c4": (2, 32, 32, 3)}
DOWNLOADED = {"mnist", "cifar10", "cifar100", "arrays"}
KINDS = {
    "metric": sf.metrics,
    "model": sf.models,
    "data set": sf.datasets,
    "optimizer": sf.optimizers,
    "figure": sf.figures,
}


@pytest.fixture(scope="module")
def objective():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(40, 6)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 3, 40))
    model = sf.Model.of(sf.models["mlp"](3, width=5, depth=1, batch_norm=True))
    params, state = model.init(jax.random.key(0), inputs)
    return sf.Objective.from_model(model, params, state, (inputs, labels), chunk=20)


@pytest.fixture(scope="module")
def measured(objective):
    """Measures a metric with whatever inputs it asks for."""
    rule = sf.optimizers["adam"]()
    state = rule.init(objective.params)
    gradient = objective.value_and_grad(objective.params)[1]
    inputs = {
        "initial_params": jax.tree.map(jnp.ones_like, objective.params),
        "opt_state": rule.update(gradient, state, objective.params)[1],
        "optimizer": rule,
        "hyperparams": sf.optimizers["adam"].arguments({}),
    }

    def measure(name, seed=0, objective=objective, **arguments):
        given = {asked: inputs[asked] for asked in sf.metrics[name].inputs}
        return sf.measure(objective, {name: arguments}, seed=seed, **given)

    return measure


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, entries in KINDS.items() for name in entries]
)
def test_every_entry_documents_itself(kind, name):
    entry = KINDS[kind][name]
    assert entry.summary.endswith((".", ")")), "the docstring's first line is a sentence"
    assert name in entry.description
    for field, info in entry.schema.model_fields.items():
        assert info.annotation is not inspect.Parameter.empty, f"{field} has no type"
    with pytest.raises(InputError, match="no_such_argument"):
        entry.arguments({"no_such_argument": 1})


@pytest.mark.parametrize("name", sf.metrics)
def test_metric_is_a_finite_scalar_reproducible_by_seed(name, measured):
    first, again = (measured(name, seed=3) for _ in range(2))
    assert isinstance(first, sf.Estimate)
    assert isinstance(first.value, float)
    assert np.isfinite(first.value)
    assert first.value == again.value
    assert first.standard_error is None or first.standard_error >= 0
    assert isinstance(first.converged, bool)
    assert all(np.asarray(detail).dtype != object for detail in first.details.values())


SELECTIVE = [
    name for name, entry in ((name, sf.metrics[name]) for name in sf.metrics)
    if "parameters" in entry.schema.model_fields and not entry.inputs
]  # fmt: skip


@pytest.mark.parametrize("name", SELECTIVE)
def test_a_pattern_of_parameters_holds_the_others_fixed(name, measured, objective):
    """The same number as of the loss as a function of those alone, and not that of all."""
    only = "Dense_0/*"
    some, whole = measured(name, parameters=only), measured(name)
    same = measured(name, objective=objective.restrict(only))
    assert some.value == pytest.approx(same.value, rel=1e-5)
    assert some.value != pytest.approx(whole.value, rel=1e-3)


@pytest.mark.parametrize("name", sf.metrics)
def test_metric_does_not_recompile_on_the_second_call(name, measured):
    measured(name, seed=0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        measured(name, seed=1)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


@pytest.mark.parametrize("name", sf.metrics)
def test_metric_docstring_holds_units_returns_example_and_source(name):
    text = sf.metrics[name].description
    for argument in (*sf.metrics[name].schema.model_fields, *sf.metrics[name].inputs):
        assert f"{argument}:" in text
    for part in ("Returns:", "Example:", ">>>"):
        assert part in text
    before_arguments = " ".join(text.partition("Args:")[0].split())
    assert re.search(
        r"units?:|in (its )?units|in percent|in nats|in radians|without (a )?units?|no units?|"
        r"dimensionless|unit of",
        before_arguments, re.IGNORECASE,
    )  # fmt: skip
    assert re.search(r"Source: .*(\d{4}|arXiv)", text, re.DOTALL)


EXAMPLES = [
    path for path in sorted(Path(sf.__file__).parent.rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]  # fmt: skip


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_in_docstrings_hold(path):
    """Each as it stands, in default JAX."""
    parts = path.relative_to(Path(sf.__file__).parents[1]).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = doctest.testmod(module)
    assert outcome.attempted
    assert not outcome.failed


@pytest.mark.parametrize("name", sf.metrics)
def test_metric_refuses_parameters_that_are_not_finite(name, objective, measured):
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, objective.params)
    bad = sf.Objective.from_model(
        objective.model, broken, objective.model_state, objective.data, chunk=20
    )
    with pytest.raises(InputError, match="not finite"):
        measured(name, objective=bad)


@pytest.mark.parametrize("name", sf.models)
def test_model_gives_finite_outputs_and_compiles_once(name):
    inputs = jax.random.normal(jax.random.key(0), IMAGES.get(name, (2, 12)))
    model = sf.Model.of(sf.models[name](7))
    assert model == sf.Model.of(sf.models[name](7))
    shape = jax.eval_shape(model.init, jax.random.key(1), inputs)
    assert jax.tree.leaves(shape[0])

    def outputs(key, inputs):
        params, state = model.init(key, inputs)
        return model.apply(params, state, inputs, batch_statistics=True, dropout=False)[0]

    if name in IMAGES:  # compiling the large ones takes minutes; their own tests run them
        assert jax.eval_shape(outputs, jax.random.key(1), inputs).shape == (2, 7)
        return
    program = jax.jit(outputs)
    first = program(jax.random.key(1), inputs)
    assert first.shape == (2, 7)
    assert jnp.isfinite(first).all()
    assert (program(jax.random.key(1), inputs) == first).all()
    assert program._cache_size() == 1


@pytest.mark.parametrize("name", [name for name in sf.datasets if name not in DOWNLOADED])
def test_data_set_is_whole_and_reproducible(name):
    one, same = sf.datasets[name](), sf.datasets[name]()
    assert one.digest == same.digest
    for split in (one.train, one.test):
        assert split.inputs.dtype == np.float32
        assert len(split.inputs) == len(split.labels) > 0
        assert set(np.unique(split.labels)) <= set(range(one.classes))


@pytest.mark.parametrize("name", sf.optimizers)
def test_optimizer_moves_parameters_finitely(name):
    rule = sf.optimizers[name]()
    params = {"w": jnp.ones(3), "b": jnp.zeros(())}
    gradient = jax.tree.map(jnp.ones_like, params)
    rule = optax.with_extra_args_support(rule)
    update, _ = rule.update(
        gradient, rule.init(params), params, grad_fn=lambda point: gradient, key=jax.random.key(0)
    )
    assert all((leaf < 0).all() and jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(update))
