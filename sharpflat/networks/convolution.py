"""Convolution and max-pooling that stay fast inside compiled loops on a CPU.

XLA's CPU backend runs a convolution inside `lax.scan`, `fori_loop` or `while_loop` 10 to 100 times
slower than outside, and the gradient of its max-pooling takes 5 times that of slices and
comparisons. Here a convolution is patches and matrix products, a group of examples at a time: the
patches of a group fit the cache, whatever the batch, and are rebuilt in the backward pass.
`benchmarks/convolution.py` compares the result with PyTorch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Patches of one group of examples, in bytes: 4 to 16 MB measured alike, more is slower.
_PATCH_BYTES = 8_000_000

Padding = str | Sequence[tuple[int, int]]


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> jax.Array:
    """`lax.conv_general_dilated`, lowered on a CPU to patches and matrix products.

    That holds for two spatial dimensions in the layout NHWC × HWIO → NHWC, without dilation or
    groups; everything else, and every other platform, gets XLA's own convolution. Derivatives in
    any mode and order, and `vmap`, work as for `lax.conv_general_dilated`.

    Args:
        lhs: inputs, [n, height, width, channels].
        rhs: kernel, [height, width, channels, features].
        window_strides: one stride a spatial dimension.
        padding: "SAME", "VALID", or a pair (low, high) a spatial dimension.
        lhs_dilation: as in `lax.conv_general_dilated`, like all that follow.
        rhs_dilation: see there.
        dimension_numbers: see there.
        feature_group_count: see there.
        batch_group_count: see there.
        precision: see there.
        preferred_element_type: see there.

    Returns:
        [n, out height, out width, features].

    Example:
        >>> from flax import linen as nn
        >>> layer = nn.Conv(64, (5, 5), conv_general_dilated=convolution)
    """
    default = partial(
        lax.conv_general_dilated,
        window_strides=window_strides, padding=padding, lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation, dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count, batch_group_count=batch_group_count,
        precision=precision, preferred_element_type=preferred_element_type,
    )  # fmt: skip
    dilations = (*(lhs_dilation or ()), *(rhs_dilation or ()))
    plain = (
        lhs.ndim == rhs.ndim == 4
        and feature_group_count == batch_group_count == 1
        and all(d == 1 for d in dilations)
        and lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        == lax.conv_dimension_numbers(lhs.shape, rhs.shape, ("NHWC", "HWIO", "NHWC"))
    )
    if not plain:
        return default(lhs, rhs)
    pads = _pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    spatial = _output_shape(lhs.shape[1:3], rhs.shape[:2], window_strides, pads)
    if not math.prod((*lhs.shape, *spatial)):
        return default(lhs, rhs)

    products = partial(
        _products,
        strides=tuple(window_strides), pads=pads,
        precision=precision, preferred_element_type=preferred_element_type,
    )  # fmt: skip
    patches = math.prod((*spatial, *rhs.shape[:3])) * lhs.dtype.itemsize
    group = _group_size(len(lhs), patches)
    return lax.platform_dependent(
        lhs, rhs, cpu=partial(_by_groups, products, group), default=default
    )


def _pads(
    shape: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape, window, strides, padding)
    return tuple((int(low), int(high)) for low, high in padding)


def _output_shape(
    shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> tuple[int, ...]:
    return tuple(
        max(0, (size + low + high - w) // s + 1)
        for size, w, s, (low, high) in zip(shape, window, strides, pads, strict=True)
    )


def _group_size(examples: int, patch_bytes: int) -> int:
    """Examples a group: as many as `_PATCH_BYTES` allow, in groups as equal as can be."""
    most = max(1, _PATCH_BYTES // patch_bytes)
    return math.ceil(examples / math.ceil(examples / most))


def _by_groups(products: Any, group: int, inputs: jax.Array, kernel: jax.Array) -> jax.Array:
    """`products` of `group` examples at a time, the last group being what is left."""
    # Checkpointed: the backward pass rebuilds a group's patches from its inputs.
    products = jax.checkpoint(products)
    if group == len(inputs):
        return products(inputs, kernel)
    whole = len(inputs) // group * group
    main = inputs[:whole].reshape(-1, group, *inputs.shape[1:])
    outputs = lax.map(lambda part: products(part, kernel), main)
    outputs = outputs.reshape(whole, *outputs.shape[2:])
    if whole == len(inputs):
        return outputs
    return jnp.concatenate([outputs, products(inputs[whole:], kernel)])


def _products(
    inputs: jax.Array,
    kernel: jax.Array,
    *,
    strides: tuple[int, ...],
    pads: tuple[tuple[int, int], ...],
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """One matrix product a kernel row, of patches that are one row high."""
    rows, columns, channels, features = kernel.shape
    shape = _output_shape(inputs.shape[1:3], (rows, columns), strides, pads)
    inputs = lax.pad(
        inputs, jnp.zeros((), inputs.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)]
    )
    patches = jnp.concatenate(
        [_every(inputs, 2, j, shape[1], strides[1]) for j in range(columns)], axis=-1
    )

    def product(i: int) -> jax.Array:
        row = _every(patches, 1, i, shape[0], strides[0])
        return jnp.matmul(
            row.reshape(-1, columns * channels),
            kernel[i].reshape(-1, features),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    output = reduce(jnp.add, map(product, range(rows)))
    return output.reshape(len(inputs), *shape, features)


def _every(array: jax.Array, axis: int, start: int, count: int, stride: int) -> jax.Array:
    """`count` elements of `axis` from `start` on, `stride` apart."""
    return lax.slice_in_dim(array, start, start + (count - 1) * stride + 1, stride, axis)


def max_pool(
    inputs: jax.Array,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """`flax.linen.max_pool` from slices and comparisons, with the same values and gradients.

    Where several elements of a window tie, the first in row-major order takes the whole gradient,
    as in `flax.linen.max_pool` (`jnp.maximum` would share it). A NaN in a window is its maximum.

    Args:
        inputs: [..., spatial dimensions, channels], floating point.
        window_shape: size of the window in each spatial dimension.
        strides: between windows; 1 where not given.
        padding: "SAME", "VALID", or a pair (low, high) a spatial dimension; pads with -inf.

    Returns:
        [..., smaller spatial dimensions, channels].
    """
    strides = tuple(strides or (1,) * len(window_shape))
    leading = inputs.ndim - len(window_shape) - 1
    spatial = inputs.shape[leading:-1]
    pads = _pads(spatial, window_shape, strides, padding)
    shape = _output_shape(spatial, window_shape, strides, pads)
    padded = lax.pad(
        inputs,
        jnp.array(-jnp.inf, inputs.dtype),
        [*[(0, 0, 0)] * leading, *((*p, 0) for p in pads), (0, 0, 0)],
    )

    def part(offsets: Sequence[int]) -> jax.Array:
        """The element at `offsets` of every window."""
        taken = padded
        for axis, (offset, count, stride) in enumerate(zip(offsets, shape, strides, strict=True)):
            taken = _every(taken, leading + axis, offset, count, stride)
        return taken

    def larger(first: jax.Array, second: jax.Array) -> jax.Array:
        return jnp.where((second > first) | jnp.isnan(second), second, first)

    return reduce(larger, map(part, itertools.product(*map(range, window_shape))))
