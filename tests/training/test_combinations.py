"""Rules of training beside one another, and with networks and numbers of other kinds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from training.combined import KEY, N, close, data, descent, mlp

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Adversarial,
    evaluated,
    make_optimizer,
    start,
    update,
)
from sharpflat.training.adversarial import attacked
from sharpflat.training.label_noise import resampled
from sharpflat.training.update import LABELS, OPTIMIZER


def step_of(made, batch, key=KEY):
    """What an update adds to the parameters."""
    begun = start(made, batch, 0)
    return optax.tree.sub(update(made, begun, batch, key)[0].params, begun.params)


@pytest.mark.parametrize("chunk", [None, 8])
def test_a_penalty_that_vanishes_leaves_the_adversarial_step(chunk):
    how = Adversarial(0.3, 0.75)
    alone = step_of(descent(mlp(), adversarial=how, chunk=chunk), data())
    both = descent(mlp(), adversarial=how, chunk=chunk, gradient_penalty=0.0)
    close(step_of(both, data()), alone, atol=1e-6)
    clean = step_of(descent(mlp(), chunk=chunk), data())
    assert float(optax.tree.norm(optax.tree.sub(alone, clean))) > 1e-2


def test_the_penalty_is_of_the_adversarial_losss_gradient():
    """∇ (L + c/2 ‖∇L‖²) = g + c H g, g and H of the mixed loss at the inputs as they were moved."""
    how, penalty, batch = Adversarial(0.3, 0.75), 0.2, data()
    model = sf.Model.from_functions(
        lambda key, x: jax.random.normal(key, (x.shape[-1], 3)), lambda w, x: jnp.tanh(x @ w)
    )
    made = descent(model, adversarial=how, gradient_penalty=penalty)
    weights = start(made, batch, 0).params

    def mean(weights, inputs):
        return jnp.mean(cross_entropy(jnp.tanh(inputs @ weights), batch.labels))

    moved = attacked(how, lambda inputs: mean(weights, inputs), batch.inputs)

    def gradient(weights):
        return jax.grad(lambda w: 0.25 * mean(w, batch.inputs) + 0.75 * mean(w, moved))(weights)

    g, hg = jax.jvp(gradient, (weights,), (gradient(weights),))
    close(step_of(made, batch), -(g + penalty * hg), atol=1e-6)


class Dropping(nnx.Module):
    """Batch norm and dropout: averages, a random key and a counter in its state."""

    def __init__(self, rngs):
        self.bn = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.body = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.body(self.dropout(self.bn(x)))


def numbers(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


@pytest.mark.parametrize("part", ["chunk", "ghost"])
@pytest.mark.parametrize("size", [8, 10])
def test_a_random_key_in_the_networks_state_does_not_break_parts(part, size):
    made = descent(sf.Model.from_nnx(Dropping), **{part: size})
    batch, begun = data(), start(made, data(), 0)
    new, loss, _ = jax.jit(update, static_argnums=0)(made, begun, batch, KEY)
    assert np.isfinite(float(loss))
    kinds = set()
    leaves = map(jax.tree.leaves, (new.model_state, begun.model_state))
    for leaf, before in zip(*leaves, strict=True):
        assert (leaf.dtype, leaf.shape) == (before.dtype, before.shape)
        assert not np.array_equal(numbers(leaf), numbers(before))
        kinds.add(str(leaf.dtype))
    assert kinds == {"float32", "key<fry>", "uint32"}
    cuts = [(0, size), (size, 2 * size), (2 * size, N)]
    means = sum((b - a) / N * batch.inputs[a:b].mean(axis=0) for a, b in cuts)
    np.testing.assert_allclose(new.model_state["bn"]["mean"][...], 0.01 * means, atol=1e-6)


def test_each_draw_of_resampled_labels_is_another():
    """And the first is what it was before there were others."""
    batch = data()
    steps = [step_of(descent(mlp(), relabel=(3, 0.5, draw)), batch) for draw in range(3)]
    kernels = [step["Dense_1"]["kernel"] for step in steps]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float(jnp.abs(kernels[a] - kernels[b]).max()) > 1e-3
    labels = resampled(batch.labels, 3, 0.5, jax.random.fold_in(KEY, LABELS))
    close(steps[0], step_of(descent(mlp()), batch._replace(labels=labels)), atol=1e-6)
    close(steps[0], step_of(descent(mlp(), relabel=(3, 0.5)), batch), rtol=0)


class Drawing(sf.Model):
    """Its gradient tells, for each example, what was drawn where that example was."""

    def init(self, key, inputs):
        return jnp.zeros((N, 4)), {}

    def apply(self, params, model_state, inputs, *, batch_statistics, dropout, key=None):
        return (inputs @ params) * jax.random.uniform(key, (1, 4)), model_state


@pytest.mark.parametrize("ghost", [8, 16, 20])
def test_no_ghost_draws_what_another_or_the_optimizer_draws(ghost):
    """20 is one whole ghost and a rest."""
    made = replace(descent(Drawing(), ghost=ghost), loss=lambda outputs, _: outputs.sum(axis=-1))
    batch = sf.Batch(jnp.eye(N), jnp.zeros(N, jnp.int32))
    drawn = np.unique(np.round(-N * np.asarray(step_of(made, batch)), 5), axis=0)
    assert len(drawn) == -(-N // ghost)
    for key in (KEY, *(jax.random.fold_in(KEY, number) for number in (OPTIMIZER, 0, 2))):
        others = np.asarray(jax.random.uniform(key, (4,)))
        assert np.abs(drawn - others).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("average", [None, ("swa", 100, 1)])
def test_entropy_sgd_stands_for_its_centre(average):
    """x, which rests while θ moves about it: not θ, and before it ever moved the start."""
    given = {"learning_rate": 0.05, "outer_rate": 0.5, "steps": 3, "noise": 0.1}
    rule = make_optimizer("entropy_sgd", given, average=average)
    params = {"w": jnp.array([1.0, -0.5])}
    state, read, points = rule.init(params), [], []
    for number in range(7):
        key = jax.random.fold_in(KEY, number)
        change, state = rule.update(params, state, params, key=key, grad_fn=lambda point: point)
        params = optax.apply_updates(params, change)
        points.append(np.asarray(params["w"]))
        read.append(np.asarray(evaluated(state, params)["w"]))
    for number in (0, 1):
        np.testing.assert_allclose(read[number], [1.0, -0.5])
    for number in (2, 5):
        np.testing.assert_allclose(read[number], points[number], rtol=1e-6)
    for number in (3, 4, 6):
        np.testing.assert_allclose(read[number], points[number // 3 * 3 - 1], rtol=1e-6)
        assert np.abs(points[number] - read[number]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("entropy_sgd", {"learning_rate": 0.05, "steps": 3}),
        ("schedule_free", {"learning_rate": 0.05}),
    ],
)
@pytest.mark.parametrize("average", [("swa", 5, 5), ("ema", 0.8)], ids=["swa", "ema"])
def test_an_average_is_that_of_what_is_evaluated(name, given, average):
    """Of the centre, or of x: not of the iterates, which move about it."""
    plain, averaged = (
        optax.with_extra_args_support(make_optimizer(name, given, average=how))
        for how in (None, average)
    )
    params = {"w": jnp.array([1.0, -0.5])}
    state, both, read, raw = plain.init(params), averaged.init(params), [], []
    for number in range(1, 21):
        about = {"key": jax.random.fold_in(KEY, number), "grad_fn": lambda point: point}
        _, both = averaged.update(params, both, params, **about)
        change, state = plain.update(params, state, params, **about)
        params = optax.apply_updates(params, change)
        read.append(np.asarray(evaluated(state, params)["w"]))
        raw.append(np.asarray(params["w"]))
    weights = 0.8 ** np.arange(20)[::-1] if average[0] == "ema" else np.arange(1, 21) % 5 == 0
    mean, other = (np.average(points, axis=0, weights=weights) for points in (read, raw))
    found = np.asarray(evaluated(both, params)["w"])
    np.testing.assert_allclose(found, mean, rtol=1e-5)
    assert np.abs(found - other).max() > 1e-3


def test_a_training_too_short_for_entropy_sgd_to_move_is_refused():
    with pytest.raises(sf.InputError, match=r"^optimizer.steps: 20 is above the 19 updates"):
        make_optimizer("entropy_sgd", {}, updates=19)
    make_optimizer("entropy_sgd", {}, updates=20)
