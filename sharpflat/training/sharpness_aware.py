"""Update rules that look at the gradient where the loss nearby is larger."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import sam as sharpness_aware

from sharpflat.registry import optimizer
from sharpflat.validation import Decay, NonNegative, Positive

SMALLEST = 1e-12
"""Beside the norm that divides: at a stationary point there is no step."""


@optimizer
def sam(
    *, learning_rate: Positive = 0.1, decay: Decay = 0.9, rho: Positive = 0.05
) -> optax.GradientTransformationExtraArgs:
    """SAM: heavy-ball momentum with the gradient at θ + ρ g/‖g‖ (Foret et al., 2021).

    Two gradients of the same batch an update; batch norm's averages are those of the first.
    """
    return _aware(learning_rate, decay, rho, None)


@optimizer
def asam(
    *,
    learning_rate: Positive = 0.1,
    decay: Decay = 0.9,
    rho: Positive = 0.5,
    eta: NonNegative = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """ASAM: as `sam` at θ + ρ T²g/‖Tg‖, T = |θ| + η elementwise (Kwon et al., 2021).

    Of biases and batch-norm parameters (arrays of one axis) T is 1, a choice of ours; the measure
    `asam_sharpness` scales every parameter.
    """
    return _aware(learning_rate, decay, rho, eta)


def _aware(
    learning_rate: float, decay: float, rho: float, eta: float | None
) -> optax.GradientTransformationExtraArgs:
    base = optax.sgd(learning_rate, momentum=decay)
    ascent = optax.stateless(lambda grads, params: _step(grads, params, rho, eta))
    rule = sharpness_aware(base, ascent, opaque_mode=True)

    def update(grads: Any, state: Any, params: Any = None, *, grad_fn: Any, **_: Any) -> Any:
        return rule.update(grads, state, params, grad_fn=lambda point, _: grad_fn(point))

    return optax.GradientTransformationExtraArgs(rule.init, update)


def _step(grads: Any, params: Any, rho: float, eta: float | None) -> Any:
    """−ρ T²g/‖Tg‖: Optax's `sam` takes a descent step and goes the other way."""

    def scale_of(leaf: jax.Array) -> jax.Array:
        return jnp.ones_like(leaf) if eta is None or leaf.ndim < 2 else jnp.abs(leaf) + eta

    scale = jax.tree.map(scale_of, params)
    scaled = jax.tree.map(jnp.multiply, scale, grads)
    length = optax.tree.norm(scaled) + SMALLEST
    return jax.tree.map(lambda t, g: -rho / length * t * g, scale, scaled)
