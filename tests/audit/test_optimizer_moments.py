"""An optimizer's second moments under a change of parametrisation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from audit.changed import ALPHA, by_change, objective_of
from jax.flatten_util import ravel_pytree

import sharpflat as sf
from sharpflat.audit import measuring
from sharpflat.audit.moments import followed
from sharpflat.audit.reparametrisations import relu_rescaling

pytestmark = pytest.mark.usefixtures("x64")


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
