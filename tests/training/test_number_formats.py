"""Numbers in single, double and half precision beside one another."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training.combined import BATCH, KEY, close, data, descent, mlp

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Members,
    Recipe,
    advance,
    beginning,
    evaluated,
    make_optimizer,
    optimizer_of,
    start,
    update,
)


def test_without_a_precision_of_its_own_a_program_has_that_of_the_session():
    def program(**about):
        made = descent(mlp(), **about)
        step = jax.jit(update, static_argnums=0)
        return step.lower(made, start(made, data(), 0), data(), KEY).as_text()

    assert "HIGHEST" not in program()
    with jax.default_matmul_precision("highest"):
        assert "HIGHEST" in program()
        assert "HIGHEST" not in program(matmul_precision="default")


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
    pair = jax.tree.map(lambda leaf: leaf[1], together.params), alone.params
    for params in pair:
        del params["Dense_0"]["bias"]  # before batch norm; Adam makes steps of its rounding
    close(*pair, atol=1e-5)


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
