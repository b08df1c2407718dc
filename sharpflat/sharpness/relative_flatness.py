"""Relative flatness: curvature of one layer, weighted so that rescaling layers leaves it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat.objective import Objective
from sharpflat.objective.layers import order_of_use
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate
from sharpflat.validation import Count, InputError, closest


def _check(objective: Objective, arguments: Mapping[str, Any]) -> None:
    _kernel(objective, arguments["layer"])


@metric(cost=lambda n, a: float(a["draws"]), checks=(_check,))
def relative_flatness(
    objective: Objective, key: jax.Array, *, layer: str | None = None, draws: Count = 100
) -> Estimate:
    """Relative flatness κ of one layer: its Hessian's blocks weighted by its own weights.

    κ = Σ_{s,s'} ⟨w_s, w_s'⟩ tr(H_{s,s'}), w_s the weights of the layer's unit s (a column of a
    Flax kernel, whose output axis is the last) and H_{s,s'} the block of the Hessian between two
    units. With W = A S Bᵀ and R a matrix of independent signs, κ = E⟨Z, H Z⟩ for Z = R S Bᵀ.
    Invariant under rescaling of layers that leaves the function as it is. Units: those of the loss.

    Args:
        objective: where to measure.
        key: PRNG key of R.
        layer: name of the kernel, as `Dense_2/kernel`; None for the last that a forward pass
            uses, whose inputs are the features.
        draws: of R; the kernel alone is perturbed.

    Returns:
        `standard_error` over draws (None for one). `converged` if every draw is finite. Details:
        `samples`; `layer`, the kernel's name.

    Raises:
        InputError: no kernel (an array of two axes or more) of that name; of a loss without a
            network, whose kernels have no order, several and no name.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> w, data = {"kernel": jnp.array([[3.0], [4.0]])}, (jnp.ones((1, 1)), jnp.ones(1))
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: 0.5 * jnp.sum(w["kernel"]**2), w, data)
        >>> round(sf.measure(bowl, "relative_flatness").value, 3)  # ‖w‖² tr(H) = 25 · 2
        50.0

    Source: Petzka, Kamp, Adilova, Sminchisescu and Boley (2021), definition 3.
    """
    name = _kernel(objective, layer)
    block = objective.restrict([name])
    (kernel,) = jax.tree.leaves(block.params)
    _, scales, right = np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]),
                                     full_matrices=False)  # fmt: skip
    factor = jnp.asarray(scales[:, None] * right, kernel.dtype)
    product = block.linearize_hvp(block.params)
    forms = _forms(product, block.params, factor, jax.random.split(key, draws))
    return Estimate.from_samples(forms, layer=np.array(name))


@jax.jit
def _forms(product: Any, params: Any, factor: jax.Array, keys: jax.Array) -> jax.Array:
    """⟨Z, H Z⟩ for each key."""
    (kernel,), structure = jax.tree.flatten(params)
    inputs = kernel.size // kernel.shape[-1]

    def one(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(key, (inputs, len(factor)), dtype=kernel.dtype)
        direction = (signs @ factor).reshape(kernel.shape)
        (image,) = jax.tree.leaves(product(jax.tree.unflatten(structure, [direction])))
        return jnp.vdot(direction, image)

    return jax.lax.map(one, keys)


def _kernel(objective: Objective, layer: str | None) -> str:
    leaves = zip(objective.layers(), jax.tree.leaves(objective.params), strict=True)
    kernels = [name for name, leaf in leaves if len(leaf.shape) >= 2]
    if not kernels:
        raise InputError("layer: no parameter has two axes or more")
    if layer is not None:
        if layer not in kernels:
            raise InputError(f"layer: no kernel is called {layer!r}{closest(layer, kernels)}")
        return layer
    last = kernels
    if objective.model is not None:
        last = [name for name in order_of_use(objective) if name in kernels][-1:]
    if len(last) != 1:
        raise InputError(f"layer: which is the last is not known; name one of {kernels}")
    return last[0]
