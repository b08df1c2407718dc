"""LARS, LAMB and ASAM: what has one axis is no matrix of weights."""

import jax
import jax.numpy as jnp
import pytest
from training.combined import GRADS, PARAMS, close, walked

import sharpflat as sf
from sharpflat.training import (
    make_optimizer,
    optimizer_of,
)


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
