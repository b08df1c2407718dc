"""The curvature up to which an optimizer is stable: beyond it, it leaves a minimum by oscillating.

Of a quadratic of curvature h, at the learning rate η: the largest h at which the iterates stay
bounded. Full-batch training settles where λmax is about that: the edge of stability (Cohen et al.,
2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Arguments = Mapping[str, Any]
Threshold = Callable[[float, Arguments], float]


def heavy_ball(rate: float, decay: float = 0.0) -> float:
    """2(1 + β)/η; plain gradient descent's 2/η at β = 0 (Cohen et al., 2021, section 2)."""
    return 2 * (1 + decay) / rate


def nesterov(rate: float, decay: float) -> float:
    """2(1 + β)/(η(1 + 2β)) (Cohen et al., 2021, appendix B)."""
    return 2 * (1 + decay) / (rate * (1 + 2 * decay))


def adam(rate: float, b1: float, weight_decay: float = 0.0) -> float:
    """(2 − ηw)(1 + β₁)/((1 − β₁)η) of P^{−1/2} H P^{−1/2}, P frozen.

    38/η at β₁ = 0.9 without weight decay (Cohen et al., 2022, section 2); with a decoupled one of
    strength w the same analysis has 2 − ηw in 2's stead.
    """
    return (2 - rate * weight_decay) * (1 + b1) / ((1 - b1) * rate)


def sam_edge(rate: float, decay: float, rho: float, gradient_norm: float) -> float:
    """‖g‖/(2ρ) · (√(1 + 4ρT/‖g‖) − 1), T the threshold of `heavy_ball` (Long and Bartlett, 2024).

    Theirs is at β = 0, with 8ρ/(η‖g‖) under the root. Where ‖g‖ is 0 it is 0.
    """
    if not gradient_norm:
        return 0.0
    root = math.sqrt(1 + 4 * rho * heavy_ball(rate, decay) / gradient_norm)
    return gradient_norm / (2 * rho) * (root - 1)


THRESHOLDS: dict[str, Threshold] = {
    "gradient_descent": lambda rate, given: heavy_ball(rate),
    "momentum": lambda rate, given: heavy_ball(rate, given["decay"]),
    "nesterov": lambda rate, given: nesterov(rate, given["decay"]),
    "sam": lambda rate, given: sam_edge(
        rate, given["decay"], given["rho"], given["gradient_norm"]()
    ),
}
"""Of the loss's Hessian."""

PRECONDITIONED: dict[str, Threshold] = {
    "adam": lambda rate, given: adam(rate, given["b1"]),
    "adamw": lambda rate, given: adam(rate, given["b1"], given["weight_decay"]),
    "rmsprop": lambda rate, given: heavy_ball(rate),
    "adagrad": lambda rate, given: heavy_ball(rate),
}
"""Of the Hessian as the optimizer's diagonal preconditioner scales it."""


def stability_threshold(
    name: str,
    arguments: Arguments,
    rate: float,
    gradient_norm: Callable[[], float],
    preconditioned: bool = False,
) -> float | None:
    """The largest stable curvature of the optimizer `name`; None where none is published.

    Args:
        name: of the optimizer.
        arguments: its own.
        rate: its learning rate now.
        gradient_norm: gives ‖g‖ of the full loss, where it is asked for.
        preconditioned: of the preconditioned Hessian, not of the Hessian itself.
    """
    known = PRECONDITIONED if preconditioned else THRESHOLDS
    if name not in known or not rate:
        return None
    return known[name](rate, {**arguments, "gradient_norm": gradient_norm})
