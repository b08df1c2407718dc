"""Conservative training: several steps on each batch, held near the point they began at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from sharpflat import trees


def conservative(
    rule: optax.GradientTransformation, strength: float, steps: int
) -> optax.GradientTransformationExtraArgs:
    """`rule`, applied `steps` times to f_B(θ) + λ/2 ‖θ − θ_k‖², from θ_k, on each batch B.

    An inexact proximal step θ_{k+1} ≈ argmin of that, λ = `strength` (Li et al., 2014; Keskar et
    al., 2017, section 4.2). The rule's own state goes on from step to step and from batch to batch.
    """
    own = optax.with_extra_args_support(rule)

    def update(
        grads: Any, state: Any, params: Any = None, *, grad_fn: Callable[[Any], Any],
        key: jax.Array, **_: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        def pulled(grads: Any, point: Any) -> Any:
            return jax.tree.map(lambda g, w, w0: g + strength * (w - w0), grads, point, params)

        def gradient(point: Any) -> Any:
            return pulled(grad_fn(point), point)

        point, step = params, grads
        for number in range(steps):
            if number:
                step = gradient(point)
            updates, state = own.update(
                step, state, point, grad_fn=gradient, key=jax.random.fold_in(key, number)
            )
            point = optax.apply_updates(point, updates)
        return trees.sub(point, params), state

    return optax.GradientTransformationExtraArgs(own.init, update)
