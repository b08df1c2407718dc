"""Many runs as one program: each as if it were trained alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Members,
    Recipe,
    advance,
    beginning,
    make_optimizer,
    optimizer_of,
    start,
)

N, BATCH = 64, 8
SEEDS = (3, 0, 5)


def data(dtype):
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(N, 6)), dtype)
    return sf.Batch(inputs, jnp.asarray(rng.integers(0, 3, N)))


def recipe(name, arguments):
    model = sf.Model.of(sf.models["mlp"](3, width=16, depth=2, batch_norm=True))
    return Recipe(model, cross_entropy, make_optimizer(name, arguments))


def begin(made, batch, seed):
    """In the numbers of the data, whatever the network's own are."""

    def cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(batch.inputs.dtype) if floating else leaf

    return jax.tree.map(cast, start(made, batch, seed))


def state_after(updates, made, batch, seed, first):
    for moment in advance(made, first, batch, batch_size=BATCH, seed=seed, stops_at=[updates]):
        if moment.step == updates:
            return moment
    raise AssertionError


def alone(updates, name, arguments, batch, seed):
    made = recipe(name, arguments)
    return state_after(updates, made, batch, seed, beginning(begin(made, batch, seed)))


def together(updates, name, arguments, batch, numbers):
    made = recipe(name, arguments)
    starts = [begin(made, batch, seed) for seed in SEEDS]
    first = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), len(SEEDS))
    build = optimizer_of(name, arguments, free=tuple(numbers))
    members = Members(SEEDS, numbers, build, np.ones(3, bool))
    return state_after(updates, made, batch, members, first), members


def deviation(one, many, place):
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True)
    return max(float(jnp.abs(a - b[place]).max()) for a, b in pairs)


CASES = [
    ("gradient_descent", {}, {"learning_rate": [0.1, 0.01, 0.3]}),
    ("momentum", {"learning_rate": 0.05}, {"decay": [0.9, 0.5, 0.0]}),
    ("adam", {}, {}),
    ("adamw", {}, {"weight_decay": [0.0, 0.1, 1.0]}),
    ("sam", {}, {"rho": [0.01, 0.05, 0.1]}),
]


@pytest.mark.parametrize(("name", "arguments", "numbers"), CASES, ids=[case[0] for case in CASES])
def test_in_float64_an_epoch_agrees_to_1e_8(x64, name, arguments, numbers):
    batch = data(jnp.float64)
    many, _ = together(8, name, arguments, batch, numbers)
    for place, seed in enumerate(SEEDS):
        own = {key: values[place] for key, values in numbers.items()}
        one = alone(8, name, {**arguments, **own}, batch, seed)
        assert one.state.params["Dense_0"]["kernel"].dtype == jnp.float64
        assert deviation(one.state, many.state, place) < 1e-8
        np.testing.assert_allclose(
            [total[place] for total in many.sums], [float(total) for total in one.sums], rtol=1e-9
        )


def test_in_float32_20_updates_of_sgd_agree_to_1e_5():
    batch = data(jnp.float32)
    many, _ = together(24, "gradient_descent", {}, batch, {"learning_rate": [0.1, 0.05, 0.2]})
    for place, (seed, rate) in enumerate(zip(SEEDS, (0.1, 0.05, 0.2), strict=True)):
        one = alone(24, "gradient_descent", {"learning_rate": rate}, batch, seed)
        assert deviation(start_of(seed, batch), many.state, place) > 0
        assert deviation(one.state, many.state, place) < 1e-5


def start_of(seed, batch):
    return start(recipe("gradient_descent", {}), batch, seed)


def test_who_is_not_active_stays_as_it_is_and_the_others_do_not_see_it():
    """Parameters, averages, optimizer and sums, from the middle of an epoch on."""
    batch, made = data(jnp.float32), recipe("adam", {})
    half, members = together(3, "adam", {}, batch, {})
    whole = state_after(8, made, batch, members, half)
    members.active = np.array([True, False, True])
    two = state_after(8, made, batch, members, half)
    leaves = [jax.tree.leaves((moment.state, moment.sums)) for moment in (half, whole, two)]
    for before, all_of_them, found in zip(*leaves, strict=True):
        assert jnp.array_equal(found, all_of_them.at[1].set(before[1]))
        assert not jnp.array_equal(all_of_them, before)


def test_a_run_that_turns_nan_leaves_its_siblings_bit_for_bit():
    batch = data(jnp.float32)
    rates = {"learning_rate": [0.1, 1e30, 0.2]}
    broken, _ = together(16, "gradient_descent", {}, batch, rates)
    whole, _ = together(16, "gradient_descent", {}, batch, {"learning_rate": [0.1, 0.1, 0.2]})
    params = jax.tree.leaves(broken.state.params)
    assert not all(jnp.isfinite(leaf[1]).all() for leaf in params)
    for place in (0, 2):
        for leaf, other in zip(params, jax.tree.leaves(whole.state.params), strict=True):
            assert jnp.array_equal(leaf[place], other[place])


class PartlyRounded(nn.Module):
    """One layer of bfloat16, in which 0.999 is 1."""

    @nn.compact
    def __call__(self, inputs, *, batch_statistics, dropout):
        hidden = nn.relu(nn.Dense(8, param_dtype=jnp.bfloat16)(inputs))
        return nn.Dense(3)(hidden)


@pytest.mark.parametrize(
    ("name", "number", "values"),
    [("adam", "b2", (0.99, 0.999)), ("adam", "b1", (0.8, 0.9)), ("momentum", "decay", (0.5, 0.9)),
     ("rmsprop", "decay", (0.9, 0.99)), ("lars", "learning_rate", (0.5, 1.0))],
)  # fmt: skip
def test_numbers_of_a_group_are_not_rounded_to_its_lowest_precision(name, number, values):
    rates = {} if number == "learning_rate" else {"learning_rate": 0.01}
    made = [
        Recipe(
            sf.Model.of(PartlyRounded()), cross_entropy,
            make_optimizer(name, {**rates, number: value}),
        )
        for value in values
    ]  # fmt: skip
    key = jax.random.key(0)
    data = sf.Batch(jax.random.normal(key, (24, 5)), jax.random.randint(key, (24,), 0, 3))
    starts = [start(recipe, data, 0) for recipe in made]
    build = optimizer_of(name, rates, free=(number,))
    members = Members((0, 0), {number: list(values)}, build, np.ones(2, bool))
    both = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), 2)

    def trained(recipe, moment, seed):
        moments = advance(recipe, moment, data, batch_size=8, seed=seed, stops_at=[6])
        return next(m for m in moments if m.step == 6).state.params

    together = trained(made[0], both, members)
    for place, (recipe, begun) in enumerate(zip(made, starts, strict=True)):
        alone = trained(recipe, beginning(begun), 0)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a[place].astype(np.float32), b.astype(np.float32), atol=1e-2)
