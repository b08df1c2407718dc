"""Update rules that look at the gradient where the loss nearby is larger."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import sam as sharpness_aware

from sharpflat.registry import Fraction, NonNegative, Positive, optimizer

SMALLEST = 1e-12
"""Beside the norm that divides: at a stationary point there is no step."""


@optimizer
def sam(
    *, learning_rate: Positive = 0.1, decay: Fraction = 0.9, rho: Positive = 0.05
) -> optax.GradientTransformationExtraArgs:
    """SAM: heavy-ball momentum with the gradient at θ + ρ g/‖g‖ (Foret et al., 2021).

    Two gradients of the same batch an update; batch norm's averages are those of the first.
    """
    return _aware(learning_rate, decay, rho, None)


@optimizer
def asam(
    *,
    learning_rate: Positive = 0.1,
    decay: Fraction = 0.9,
    rho: Positive = 0.5,
    eta: NonNegative = 0.01,
) -> optax.GradientTransformationExtraArgs:
    """ASAM: as `sam` at θ + ρ T²g/‖Tg‖, T = |θ| + η elementwise (Kwon et al., 2021)."""
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
    scale = jax.tree.map(lambda w: jnp.ones(()) if eta is None else jnp.abs(w) + eta, params)
    scaled = jax.tree.map(jnp.multiply, scale, grads)
    length = optax.tree.norm(scaled) + SMALLEST
    return jax.tree.map(lambda t, g: -rho / length * t * g, scale, scaled)
