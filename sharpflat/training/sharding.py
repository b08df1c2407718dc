"""One training on many devices: they share the examples of each pass, and each holds all else.

What is computed is what one device computes, batch-norm statistics of the whole batch included:
the compiler divides the work and adds up the parts, so that results differ by rounding only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
COPIES = "copies"


def data_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """The devices in one row, an axis named `data`."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def shares(mesh: Mesh, examples: int) -> int:
    """Into how many equal parts the devices can divide so many examples."""
    return math.gcd(examples, mesh.size)


def by_examples(mesh: Mesh, examples: int) -> NamedSharding:
    """Equal parts of so many examples on the devices; where there are more devices, copies."""
    grid = mesh.devices.reshape(shares(mesh, examples), -1)
    axes = Mesh(grid, (AXIS, COPIES), axis_types=(AxisType.Auto,) * 2)
    return NamedSharding(axes, PartitionSpec(AXIS))


def divided(mesh: Mesh | None, batch: Any) -> Any:
    """Inside a compiled program: `batch`, its examples divided among the devices."""
    if mesh is None:
        return batch
    examples = len(jax.tree.leaves(batch)[0])
    return jax.lax.with_sharding_constraint(batch, by_examples(mesh, examples))


def alike(mesh: Mesh | None, tree: Any) -> Any:
    """Inside a compiled program: `tree`, whole on each device."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def replicated(mesh: Mesh | None, tree: Any) -> Any:
    """`tree` from this process, whole on each device; it must be the same in every process."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return _by_numbers(lambda numbers: jax.tree.map(put, numbers), tree)


def agreed(mesh: Mesh | None, tree: Any) -> Any:
    """`tree` as the first process has it, on the host; every process must ask at the same point."""
    if mesh is None or not mesh.is_multi_process:
        return tree
    return _by_numbers(
        lambda numbers: multihost_utils.broadcast_one_to_all(jax.tree.map(np.asarray, numbers)),
        tree,
    )


def own(mesh: Mesh | None, tree: Any) -> Any:
    """`tree`, whole on each device of all processes, as whole on each device of this one."""
    if mesh is None or not mesh.is_multi_process:
        return tree
    sharding = NamedSharding(data_mesh(mesh.local_devices), PartitionSpec())

    def pick(leaf: jax.Array) -> jax.Array:
        parts = [shard.data for shard in leaf.addressable_shards]
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, parts)

    return _by_numbers(lambda numbers: jax.tree.map(pick, numbers), tree)


def shared(mesh: Mesh | None, batch: Any) -> Any:
    """`batch` from this process, its examples divided among its devices."""
    if mesh is None:
        return jax.device_put(batch)
    examples = len(jax.tree.leaves(batch)[0])
    return jax.device_put(batch, by_examples(data_mesh(mesh.local_devices), examples))


def _by_numbers(function: Callable[[Any], Any], tree: Any) -> Any:
    """`function` of the tree, with typed PRNG keys as their numbers."""

    def is_key(leaf: Any) -> bool:
        return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)

    done = function(jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree))
    return jax.tree.map(
        lambda new, old: jax.random.wrap_key_data(new) if is_key(old) else new, done, tree
    )
