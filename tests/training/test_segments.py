"""Epochs: order, exactness, segments, updates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Recipe,
    advance,
    beginning,
    epochs,
    make_optimizer,
    segments,
    start,
)
from sharpflat.training.batching import epoch_order

N = 22


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return sf.Batch(
        jnp.asarray(rng.normal(size=(N, 5)), jnp.float32), jnp.asarray(rng.integers(0, 3, N))
    )


def recipe(name="gradient_descent", batch_norm=False, **arguments):
    model = sf.Model.of(sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm))
    return Recipe(model, cross_entropy, make_optimizer(name, arguments))


def trained(recipe, data, count, **kwargs):
    kwargs = {"batch_size": 5, "seed": 0, **kwargs}
    state = start(recipe, data, kwargs["seed"])
    for epoch in epochs(recipe, state, data, **kwargs):
        if epoch.number == count:
            return epoch


def same(a, b):
    return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_order_is_a_new_permutation_an_epoch_from_seed_and_epoch_alone():
    orders = [tuple(np.asarray(epoch_order(s, e, N))) for s, e in [(0, 1), (0, 2), (1, 1), (0, 1)]]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert orders[0] == orders[3]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("size", [1, 5, N])
@pytest.mark.parametrize(
    ("name", "arguments"), [("momentum", {"learning_rate": 0.1}), ("adam", {})]
)
def test_an_epoch_equals_a_plain_loop_over_its_batches(name, arguments, size, data):
    """Every example once, the smaller last batch included."""
    made = recipe(name, **arguments)
    state = start(made, data, 0)
    order = np.asarray(epoch_order(0, 1, N))
    params, opt_state, losses = state.params, state.opt_state, []
    for batch in np.split(order, range(size, N, size)):

        def loss(p, batch=batch):
            outputs, _ = made.model.apply(
                p, {}, data.inputs[batch], batch_statistics=True, dropout=False
            )
            return cross_entropy(outputs, data.labels[batch]).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = made.optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        losses.append((value, len(batch)))
    epoch = trained(made, data, 1, batch_size=size)
    for ours, theirs in zip(
        jax.tree.leaves(epoch.state.params), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert epoch.step == len(losses) == -(-N // size)
    assert epoch.train_loss == pytest.approx(float(sum(v * n for v, n in losses)) / N, rel=1e-5)


def test_drop_last_leaves_the_smaller_batch_out(data):
    assert trained(recipe(), data, 2, drop_last=True).step == 8
    assert trained(recipe(), data, 2).step == 10


@pytest.mark.parametrize("batch_norm", [False, True])
def test_the_cut_into_segments_changes_no_bit(data, batch_norm, monkeypatch):
    made = recipe("adam", batch_norm)
    whole = trained(made, data, 3, batch_size=2)
    lengths = iter([1, 3, 2, 1, 4, 1, 1, 7, 2, 1, 3] * 10)
    monkeypatch.setattr(segments, "_next_length", lambda *args: next(lengths))
    cut = trained(made, data, 3, batch_size=2)
    assert same(whole.state, cut.state)
    assert whole.train_loss == cut.train_loss


def test_continuing_from_a_state_is_bit_for_bit_the_unbroken_run(data):
    made = recipe("adam", batch_norm=True)
    unbroken = trained(made, data, 4)
    half = jax.tree.map(jnp.copy, trained(made, data, 2).state)
    second = epochs(made, half, data, batch_size=5, seed=0, first=3)
    assert next(second).number == 3
    assert same(next(second).state, unbroken.state)


def test_the_callers_state_survives(data):
    made = recipe()
    state = start(made, data, 0)
    next(epochs(made, state, data, batch_size=N, seed=0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_start_depends_on_the_seed_not_on_the_optimizer(data):
    assert same(start(recipe(), data, 3).params, start(recipe("adam"), data, 3).params)
    assert not same(start(recipe(), data, 3).params, start(recipe(), data, 4).params)


def test_no_recompilation_in_the_second_epoch_or_for_the_next_seed(data):
    made = recipe(learning_rate=0.05)
    trained(made, data, 1)
    programs = segments._segment._cache_size()
    trained(made, data, 3)
    trained(recipe(learning_rate=0.05), data, 2, seed=5)
    assert segments._segment._cache_size() == programs


def test_momentum_is_the_decaying_sum_of_all_past_gradients():
    """θ_t − θ_{t−1} = −η Σ_k λ^k g_{t−k}."""
    rule = make_optimizer("momentum", {"learning_rate": 0.1, "decay": 0.9})
    gradients = jnp.asarray([1.0, -2.0, 0.5, 3.0])
    state = rule.init(jnp.zeros(()))
    for t, gradient in enumerate(gradients):
        update, state = rule.update(gradient, state)
        past = gradients[: t + 1][::-1]
        assert update == pytest.approx(-0.1 * float(jnp.sum(past * 0.9 ** jnp.arange(t + 1))))


@pytest.mark.parametrize("name", list(sf.optimizers))
def test_every_optimizer_lowers_the_loss(name, data):
    first, last = trained(recipe(name), data, 1), trained(recipe(name), data, 25)
    assert last.train_loss < first.train_loss
    assert sf.optimizers[name].summary


def test_one_state_is_in_memory_while_it_trains(data):
    """Beside that of the caller, who may keep it or not."""
    made = recipe("adam")
    moments = advance(made, beginning(start(made, data, 0)), data, batch_size=5, seed=0)
    moment = next(moments)
    shapes = [leaf.shape for leaf in jax.tree.leaves(moment.state.params)]
    others = jax.live_arrays()  # held, so that no new array takes the name of an old one
    for _ in range(3):
        moment = next(moments)
    known = {id(array) for array in others}
    alive = [array.shape for array in jax.live_arrays() if id(array) not in known]
    assert all(alive.count(shape) == 3 * shapes.count(shape) for shape in shapes), (
        "parameters and Adam's two moments"
    )
