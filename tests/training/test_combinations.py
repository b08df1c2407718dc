"""Rules of training beside one another, and with networks and numbers of other kinds."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from runs.studies import write

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Adversarial,
    Members,
    Recipe,
    advance,
    beginning,
    evaluated,
    make_optimizer,
    optimizer_of,
    rate_at,
    start,
    update,
)
from sharpflat.training.adversarial import attacked
from sharpflat.training.label_noise import resampled
from sharpflat.training.update import LABELS, OPTIMIZER

KEY = jax.random.key(5)
N, BATCH = 24, 8


def data(dtype=jnp.float32):
    inputs = jax.random.normal(jax.random.key(1), (N, 5), dtype)
    return sf.Batch(inputs, jax.random.randint(jax.random.key(2), (N,), 0, 3))


def descent(model, **about):
    """Plain descent of rate 1, whose step is minus the gradient."""
    rule = make_optimizer("gradient_descent", {"learning_rate": 1.0})
    return Recipe(sf.Model.of(model), cross_entropy, rule, **about)


def mlp(batch_norm=False):
    return sf.models["mlp"](3, width=4, depth=1, batch_norm=batch_norm)


def step_of(made, batch, key=KEY):
    """What an update adds to the parameters."""
    begun = start(made, batch, 0)
    return optax.tree.sub(update(made, begun, batch, key)[0].params, begun.params)


def close(found, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), found, expected)


# Adversarial training with a gradient penalty.


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


# A setting of the user's own.


def test_without_a_precision_of_its_own_a_program_has_that_of_the_session():
    def program(**about):
        made = descent(mlp(), **about)
        step = jax.jit(update, static_argnums=0)
        return step.lower(made, start(made, data(), 0), data(), KEY).as_text()

    assert "HIGHEST" not in program()
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in program()
        assert "HIGHEST" not in program(matmul_precision="default")


# A network whose state is not of floating-point numbers alone.


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


# Resampled labels.


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


# Numbers that no optimizer can do with.


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("momentum", "decay"), ("nesterov", "decay"), ("rmsprop", "decay"), ("lars", "decay"),
        ("sam", "decay"), ("asam", "decay"),
        *((name, argument) for name in ("adam", "adamw", "lamb") for argument in ("b1", "b2")),
        ("schedule_free", "b1"),
    ],
)  # fmt: skip
def test_a_decay_of_one_is_refused_by_name(name, argument):
    with pytest.raises(sf.InputError, match=rf"{name}\.{argument}: .* less than 1, got 1\.0"):
        make_optimizer(name, {argument: 1.0})
    if name != "schedule_free":
        make_optimizer(name, {argument: 0.0})


def test_schedule_free_needs_a_part_of_its_average():
    with pytest.raises(sf.InputError, match=r"schedule_free\.b1: .* greater than 0, got 0\.0"):
        make_optimizer("schedule_free", {"b1": 0.0})


def test_a_decay_of_one_is_refused_in_a_config(tmp_path):
    train = {"batch_size": 8, "epochs": 1, "optimizer": {"name": "momentum", "decay": 1.0}}
    path = write(tmp_path, train=train, seeds=1, sweep=None)
    with pytest.raises(sf.InputError, match=r"train\.optimizer\.decay: .* less than 1, got 1\.0"):
        sf.train(sf.load_config(path), tmp_path / "r")


# Parameters in single precision while the session's is double.


def trained(made, moment, seed, updates=4):
    reached = advance(made, moment, data(), batch_size=BATCH, seed=seed, stops_at=[updates])
    return next(moment.state for moment in reached if moment.step == updates)


def of_single_precision(tree):
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
    return kinds <= {"float32", "int32"}


@pytest.mark.parametrize("name", sf.optimizers)
def test_in_a_session_of_double_precision_single_ones_train_alone_and_together(x64, name):
    rates = [0.01, 0.02]
    recipes = [
        Recipe(sf.Model.of(mlp(True)), cross_entropy, make_optimizer(name, {"learning_rate": rate}))
        for rate in rates
    ]
    starts = [start(made, data(), 0) for made in recipes]
    build = optimizer_of(name, {}, free=("learning_rate",))
    members = Members([0, 0], {"learning_rate": rates}, build, np.ones(2, bool))
    both = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), 2)
    together = trained(recipes[0], both, members)
    assert of_single_precision(together)
    alone = trained(recipes[1], beginning(starts[1]), 0)
    assert of_single_precision(alone)
    close(jax.tree.map(lambda leaf: leaf[1], together.params), alone.params, atol=1e-5)


@pytest.mark.parametrize(
    "about",
    [
        {"average": ("ema", 0.9)}, {"average": ("swa", 1, 1)}, {"conservative": (0.1, 2)},
        {"schedule": {"name": "cosine"}, "updates": 29},
        {"schedule": {"name": "step"}, "updates": 29},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["momentum", "entropy_sgd"])
def test_so_they_do_with_averages_and_schedules(x64, name, about):
    made = descent(mlp(True))
    made = replace(made, optimizer=make_optimizer(name, {}, **about))
    begun = start(made, data(), 0)
    after, _, _ = jax.eval_shape(lambda state: update(made, state, data(), KEY), begun)
    kinds = [[leaf.dtype for leaf in jax.tree.leaves(state)] for state in (begun, after)]
    assert kinds[0] == kinds[1]
    read = jax.eval_shape(lambda state: evaluated(state.opt_state, state.params), after)
    assert of_single_precision((after.params, read))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_averages_keep_their_precision_through_passes_in_bfloat16(x64, dtype):
    made = descent(mlp(True), compute_dtype="bfloat16", ghost=4)
    begun = start(made, data(), 0)
    begun = begun._replace(model_state=sf.trees.cast(begun.model_state, dtype))
    after, _, _ = update(made, begun, data(), KEY)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(after.model_state)} == {dtype}
    assert of_single_precision(after.params)


# Random keys.


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


# What has one axis is no matrix of weights.

PARAMS = {
    "kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]),
    "bias": jnp.zeros(2),
    "scale": jnp.array([4.0, 2.0]),
}
GRADS = {
    "kernel": jnp.array([[0.3, 0.1], [-0.2, 0.4]]),
    "bias": jnp.array([0.5, -0.25]),
    "scale": jnp.array([0.1, 0.7]),
}


def walked(rule, count=2, params=PARAMS, grad_fn=lambda point: GRADS):
    rule, points = optax.with_extra_args_support(rule), [params]
    state = rule.init(params)
    for _ in range(count):
        change, state = rule.update(
            grad_fn(params), state, params, grad_fn=grad_fn, key=KEY, value=None
        )
        params = optax.apply_updates(params, change)
        points.append(params)
    return points


def test_under_lamb_biases_and_batch_norm_make_the_plain_step():
    """Neither a trust ratio nor decay, at 0 or elsewhere; kernels have both."""
    given = {"learning_rate": 0.1, "b1": 0.7, "b2": 0.8, "epsilon": 0.1}
    found = walked(make_optimizer("lamb", {**given, "weight_decay": 0.3}))
    expected = walked(make_optimizer("adam", given))
    for one, other in zip(found[1:], expected[1:], strict=True):
        close({**one, "kernel": 0}, {**other, "kernel": 0}, rtol=1e-5)
    u = GRADS["kernel"] / (jnp.abs(GRADS["kernel"]) + 0.1) + 0.3 * PARAMS["kernel"]
    ratio = jnp.linalg.norm(PARAMS["kernel"]) / jnp.linalg.norm(u)
    close(found[1]["kernel"], PARAMS["kernel"] - 0.1 * ratio * u, rtol=1e-5)


def test_under_lars_each_array_goes_by_its_own_norm_and_kernels_alone_decay():
    rule = make_optimizer("lars", {"learning_rate": 0.1, "weight_decay": 0.3, "trust": 0.02})
    for params in (PARAMS, {**PARAMS, "bias": jnp.array([0.3, 0.1])}):
        found = walked(rule, 1, params)[1]
        for name, w in params.items():
            u = GRADS[name] + (0.3 * w if name == "kernel" else 0.0)
            norm = jnp.linalg.norm(w)
            ratio = 0.02 * norm / jnp.linalg.norm(u) if norm else 1.0
            close(found[name], w - 0.1 * ratio * u, rtol=1e-5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_their_numbers_may_be_traced_all_the_same(name):
    given = {**sf.optimizers[name].arguments({}), "weight_decay": 0.3}
    build = optimizer_of(name, given, free=tuple(given))
    found = jax.jit(lambda numbers: walked(build(numbers)))(given)
    close(found, walked(make_optimizer(name, given)), rtol=1e-5)


def test_asam_scales_weights_alone():
    """T = |w| + η of the kernel, 1 of the bias (which is 0) and of batch norm's scale."""
    rho, eta = 0.3, 0.01
    scale = {**jax.tree.map(jnp.ones_like, PARAMS), "kernel": jnp.abs(PARAMS["kernel"]) + eta}
    length = jnp.sqrt(sum(jnp.sum((scale[k] * GRADS[k]) ** 2) for k in PARAMS))
    seen = []

    def grad_fn(point):
        seen.append(point)
        return GRADS

    walked(make_optimizer("asam", {"rho": rho, "eta": eta}), 1, grad_fn=grad_fn)
    above = {k: PARAMS[k] + rho * scale[k] ** 2 * GRADS[k] / length for k in PARAMS}
    close(seen[-1], above, rtol=1e-5)


# What is evaluated of Entropy-SGD.


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


# Momentum under a schedule.


def scheduled(name, **given):
    about = {"schedule": {"name": "step", "at": [0.5], "factor": 0.1}, "updates": 5}
    points = walked(make_optimizer(name, given, **about), 4, grad_fn=lambda point: point)
    rates = [rate_at(step, given, **about) for step in range(4)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])
    return points, rates


def test_a_schedule_multiplies_the_whole_sum_of_momentum():
    points, rates = scheduled("momentum", learning_rate=0.1, decay=0.6)
    for t in range(1, 5):
        total = sum(0.6**k * points[t - 1 - k]["kernel"] for k in range(t))
        step = points[t]["kernel"] - points[t - 1]["kernel"]
        np.testing.assert_allclose(step, -rates[t - 1] * total, rtol=1e-4)


def test_under_lars_each_gradient_keeps_its_own_rate():
    points, rates = scheduled("lars", learning_rate=0.1, decay=0.6)
    for t in range(1, 5):
        total = sum(0.6**k * rates[t - 1 - k] * points[t - 1 - k]["scale"] for k in range(t))
        step = points[t]["scale"] - points[t - 1]["scale"]
        np.testing.assert_allclose(step, -1e-3 * total, rtol=1e-3)  # ‖w‖ = ‖g‖ here


def test_schedule_free_weighs_each_update_by_its_own_rate():
    """Defazio et al. (2024): weights η² (the largest so far), under a warm-up."""
    rates, b1 = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5], 0.9
    rule = make_optimizer("schedule_free", {"learning_rate": 0.5}, warmup=4.0, updates=6)
    points = walked(rule, 6, grad_fn=lambda point: point)
    x = z = y = points[0]["kernel"]
    for t, rate in enumerate(rates):
        z = z - rate * y
        x = x + rate**2 / sum(r**2 for r in rates[: t + 1]) * (z - x)
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(points[t + 1]["kernel"], y, rtol=1e-5)


# The rate of an update.


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, 0.2),
        ({"scale": 4.0}, 0.8),
        ({"warmup": 4.0, "updates": 9}, 0.15),
        ({"schedule": {"name": "cosine"}, "updates": 5}, 0.1),
    ],
    ids=["constant", "scaled", "warm-up alone", "schedule alone"],
)
def test_a_rate_needs_only_what_changes_it(factors, expected):
    assert rate_at(2, {"learning_rate": 0.2}, **factors) == pytest.approx(expected)


def test_the_last_update_of_a_cosine_to_nothing_changes_nothing():
    about = {"schedule": {"name": "cosine"}, "updates": 5}
    points = walked(make_optimizer("gradient_descent", {"learning_rate": 0.1}, **about), 5)
    close(points[5], points[4], rtol=0)
    assert not np.allclose(points[4]["kernel"], points[3]["kernel"], rtol=0, atol=1e-6)
