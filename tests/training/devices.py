"""Trainings on all devices beside the same on one, in a process of its own.

    python tests/training/devices.py                  # on as many as there are in this process
    python tests/training/devices.py localhost:1234 2 0   # and, beside it, ... 2 1

Prints by how much parameters, states and sums differ, and what else tests ask for, as JSON.
"""

import json
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sharpflat as sf
from sharpflat.objective import cross_entropy
from sharpflat.training import (
    Members,
    Recipe,
    TrainState,
    advance,
    beginning,
    data_mesh,
    make_optimizer,
    optimizer_of,
    own,
    shares,
    start,
    update,
)
from sharpflat.training.sharding import by_examples

N, BATCH, UPDATES = 37, 8, 5  # an epoch has a smaller last batch, of 5
SEEDS = (3, 0)


class Case(NamedTuple):
    optimizer: str = "gradient_descent"
    model: Any = None
    recipe: dict[str, Any] = {}  # noqa: RUF012
    streamed_by: int | None = None
    together: bool = False


class Dropping(sf.networks.adapter.nn.Module):
    @sf.networks.adapter.nn.compact
    def __call__(self, x, train):
        nn = sf.networks.adapter.nn
        x = nn.relu(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


NORM = sf.Model.of(sf.models["mlp"](3, width=16, depth=1, batch_norm=True))
CASES = {
    "batch norm, streamed": Case(streamed_by=16),
    "together": Case(together=True),
    "adam, dropout, accumulated": Case("adam", sf.Model.of(Dropping()), {"chunk": 4}),
    "sam, ghost batch norm, clipped": Case("sam", recipe={"ghost": 2, "clip": 0.5}),
}
FEW = ("batch norm, streamed", "together")


def data(dtype):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N, 4, 4, 1)).astype(dtype)
    return sf.Batch(inputs, rng.integers(0, 3, N).astype(np.int32))


def begin(recipe, batch, seed):
    """In the numbers of the data, whatever the network's own are."""

    def cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(batch.inputs.dtype) if floating else leaf

    begun = jax.jit(start, static_argnums=(0, 2))(replace(recipe, mesh=None), batch, seed)
    return jax.tree.map(cast, begun)


def trained(case, mesh, updates, dtype):
    """Sums and state after so many updates, which end an epoch."""
    rule = make_optimizer(case.optimizer, {"learning_rate": 0.1})
    recipe = Recipe(case.model or NORM, cross_entropy, rule, **case.recipe, mesh=mesh)
    batch, seed, first = data(dtype), SEEDS[0], None
    if case.together:
        build = optimizer_of(case.optimizer, {"learning_rate": 0.1}, free=("learning_rate",))
        numbers = {"learning_rate": [0.1, 0.05]}
        seed = Members(SEEDS, numbers, build, np.array([True, jax.process_index() == 0]))
        states = [begin(recipe, batch, seed) for seed in SEEDS]
        first = beginning(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), len(SEEDS))
        if mesh is None:
            seed = replace(seed, active=np.ones(2, bool))
    first = first or beginning(begin(recipe, batch, seed))
    if jax.process_index() and mesh is not None:  # the first process's moment is that of all
        first = jax.tree.map(jnp.zeros_like, first)._replace(step=7)
    streamed_by = None if mesh is None else case.streamed_by
    batch = batch if mesh is not None else jax.tree.map(jnp.asarray, batch)
    for moment in advance(
        recipe, first, batch, batch_size=BATCH, seed=seed, streamed_by=streamed_by
    ):
        if moment.step == updates:
            return jax.tree.map(np.asarray, own(mesh, (moment.sums, moment.state)))
    raise AssertionError


def deviation(case, mesh, updates, dtype):
    one, many = (trained(case, devices, updates, dtype) for devices in (None, mesh))
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True))
    assert all(a.dtype == b.dtype for a, b in pairs)
    assert any(a.dtype == dtype for a, _ in pairs)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def work(mesh):
    """Operations of an update on one device."""
    made = Recipe(NORM, cross_entropy, make_optimizer("gradient_descent", {}), mesh=mesh)
    few = data(np.float32).first(32)
    state = TrainState(*start(made, few, 0))
    key = jax.random.key(0)
    lowered: Any = jax.jit(update, static_argnums=0).lower(made, state, few, key)
    return lowered.compile().cost_analysis()["flops"]


def main():
    if sys.argv[1:]:
        address, count, index = sys.argv[1:]
        jax.distributed.initialize(address, int(count), int(index))
    mesh = data_mesh(jax.devices())
    one_process = jax.process_count() == 1
    found: dict[str, Any] = {"devices": mesh.size}
    with jax.enable_x64(True):
        found["float64"] = {
            name: deviation(CASES[name], mesh, UPDATES, np.float64)
            for name in (CASES if one_process else FEW)
        }
    found["float32"] = deviation(Case(), mesh, 4 * UPDATES, np.float32)
    if one_process:
        found["work"] = work(mesh) / work(None)
        found["parts"] = {
            n: [shares(mesh, n), by_examples(mesh, n).shard_shape((n, 3))[0]] for n in (32, 12, 7)
        }
    print(json.dumps(found))


main()
