import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sharpflat.networks import convolution as module
from sharpflat.networks.convolution import convolution, max_pool

NHWC = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def derivatives(function, *arguments):
    """Value, jvp, gradient and Hessian-vector product (forward over reverse) of `function`."""
    directions = tuple(normal(90 + i, *a.shape) for i, a in enumerate(arguments))

    def scalar(*arguments):
        return jnp.sum(function(*arguments) ** 3)

    def everything(arguments, directions):
        gradient = jax.grad(scalar, tuple(range(len(arguments))))
        value_and_tangent = jax.jvp(function, arguments, directions)
        return value_and_tangent, jax.jvp(gradient, arguments, directions)

    return jax.jit(everything)(arguments, directions)


def assert_close(actual, expected):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())

    jax.tree.map(close, actual, expected)


CASES = [
    # size, kernel, stride, padding, bytes of patches a group
    ((8, 8), (3, 3), (1, 1), "SAME", None),
    ((7, 9), (5, 5), (1, 1), "SAME", 40_000),  # groups of 2, 2 and 1
    ((9, 7), (3, 3), (2, 2), "SAME", 1),  # groups of one
    ((8, 9), (5, 5), (2, 2), "VALID", None),
    ((9, 8), (5, 3), (2, 1), "VALID", 20_000),
    ((6, 7), (3, 3), (1, 1), ((2, 0), (-1, 1)), 10_000),
    ((5, 5), (1, 1), (2, 2), "SAME", None),
]


@pytest.mark.parametrize(("size", "kernel", "strides", "padding", "group"), CASES)
def test_equals_xla_with_all_derivatives(monkeypatch, size, kernel, strides, padding, group):
    if group:
        monkeypatch.setattr(module, "_PATCH_BYTES", group)
    inputs, weights = normal(1, 5, *size, 3), normal(2, *kernel, 3, 4)

    def ours(x, w):
        return convolution(x, w, strides, padding, dimension_numbers=NHWC)

    def reference(x, w):
        return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=NHWC)

    assert_close(derivatives(ours, inputs, weights), derivatives(reference, inputs, weights))
    assert "convolution(" not in jax.jit(ours).lower(inputs, weights).compile().as_text()


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_equals_xla(monkeypatch, axes):
    monkeypatch.setattr(module, "_PATCH_BYTES", 20_000)
    inputs, weights = normal(1, 3, 5, 8, 7, 3), normal(2, 3, 3, 3, 3, 4)
    inputs, weights = (
        a if axis == 0 else a[0] for a, axis in zip((inputs, weights), axes, strict=True)
    )

    def gradients(conv):
        def scalar(x, w):
            return jnp.sum(conv(x, w, (1, 1), "SAME", dimension_numbers=NHWC) ** 2)

        return jax.jit(jax.vmap(jax.value_and_grad(scalar, (0, 1)), axes))(inputs, weights)

    assert_close(gradients(convolution), gradients(lax.conv_general_dilated))


@pytest.mark.parametrize(
    ("groups", "settings"),
    [
        (1, {"rhs_dilation": (2, 2)}),
        (1, {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 1))}),
        (2, {"feature_group_count": 2}),
        (1, {"dimension_numbers": ("NCHW", "HWIO", "NCHW")}),
    ],
)
def test_everything_else_is_left_to_xla(groups, settings):
    settings = {"dimension_numbers": NHWC, "padding": "SAME", **settings}
    inputs, weights = normal(1, 2, 4, 8, 4), normal(2, 3, 3, 4 // groups, 6)
    ours = convolution(inputs, weights, (1, 1), **settings)
    reference = lax.conv_general_dilated(inputs, weights, (1, 1), **settings)
    assert_close(ours, reference)


def test_one_dimensional_and_empty_inputs_are_left_to_xla():
    inputs, weights = normal(1, 2, 8, 3), normal(2, 3, 3, 6)
    numbers = ("NWC", "WIO", "NWC")
    ours = convolution(inputs, weights, (1,), "SAME", dimension_numbers=numbers)
    reference = lax.conv_general_dilated(inputs, weights, (1,), "SAME", dimension_numbers=numbers)
    assert_close(ours, reference)
    empty = convolution(
        jnp.zeros((0, 8, 8, 3)), normal(2, 3, 3, 3, 6), (1, 1), "SAME", dimension_numbers=NHWC
    )
    assert empty.shape == (0, 8, 8, 6)


def test_linen_layer_is_the_same_with_it():
    inputs, params = normal(1, 2, 9, 9, 3), {"kernel": normal(2, 3, 3, 3, 4), "bias": normal(3, 4)}
    outputs = [
        nn.Conv(4, (3, 3), strides=(2, 2), conv_general_dilated=conv).apply(
            {"params": params}, inputs
        )
        for conv in (convolution, None)
    ]
    assert_close(*outputs)


def test_patches_are_not_kept_for_the_backward_pass():
    inputs, weights = jnp.zeros((512, 16, 16, 16)), jnp.zeros((5, 5, 16, 16))

    def scalar(x, w):
        return jnp.sum(convolution(x, w, (1, 1), "SAME", dimension_numbers=NHWC) ** 2)

    program = jax.jit(jax.grad(scalar, (0, 1))).lower(inputs, weights).compile()
    assert program.memory_analysis().temp_size_in_bytes < 8 * inputs.nbytes  # patches: 25 times


POOLS = [
    ((8, 8), (3, 3), (2, 2), "SAME"),
    ((8, 8), (2, 2), (2, 2), "SAME"),
    ((7, 9), (3, 3), (2, 2), "SAME"),
    ((7, 9), (2, 2), (2, 2), "VALID"),
    ((7, 8), (3, 2), (1, 3), ((1, 0), (0, 1))),
    ((5, 6), (2, 2), None, "SAME"),
]


@pytest.mark.parametrize(("size", "window", "strides", "padding"), POOLS)
def test_max_pool_equals_linen_ties_included(size, window, strides, padding):
    inputs = normal(1, 2, *size, 3)

    def gradient(pool):
        def scalar(x):
            outputs = pool(x, window, strides, padding)
            return jnp.sum(outputs * jnp.arange(outputs.size).reshape(outputs.shape)), outputs

        return jax.jit(jax.grad(scalar, has_aux=True))

    ours, reference = gradient(max_pool), gradient(nn.max_pool)
    for x in (inputs, np.round(inputs)):
        assert_close(ours(x), reference(x))


def test_max_pool_hvp_and_vmap_equal_linen():
    inputs = normal(1, 4, 7, 7, 3)

    def pooled(pool):
        return lambda x: pool(x, (3, 3), (2, 2), "SAME")

    assert_close(derivatives(pooled(max_pool), inputs), derivatives(pooled(nn.max_pool), inputs))
    assert_close(jax.vmap(pooled(max_pool))(inputs), pooled(nn.max_pool)(inputs))


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (2, 2), (3, 1)])
def test_max_pool_keeps_nan(place):
    inputs = jnp.ones((1, 4, 4, 1)).at[0, *place, 0].set(jnp.nan)
    ours = max_pool(inputs, (3, 3), (2, 2), "SAME")
    np.testing.assert_array_equal(ours, nn.max_pool(inputs, (3, 3), (2, 2), "SAME"))
    assert jnp.isnan(ours).any()
