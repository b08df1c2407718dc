"""Margins of the classes, and the product of spectral norms that they are measured against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat.objective import Objective
from sharpflat.registry import metric
from sharpflat.sharpness.base import Estimate, needs_outputs
from sharpflat.validation import Fraction, InputError


def has_kernels(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that multiply the norms of matrices."""
    if arguments.get("normalization") != "none" and not _kernels(objective):
        raise InputError("params: none is a kernel, an array of two axes or more")


def classifies(objective: Objective, arguments: Mapping[str, Any]) -> None:
    """The check of metrics that compare the outputs of classes."""
    needs_outputs(objective, arguments)
    kind = objective.data.labels.dtype
    if not jnp.issubdtype(kind, jnp.integer):
        raise InputError(f"labels: expected whole numbers, one class an example, got {kind}")
    shape = jax.eval_shape(Objective.outputs, objective, objective.params).shape
    if len(shape) != 2 or shape[1] < 2:
        raise InputError(f"outputs: expected [n, classes], two classes or more, got {list(shape)}")


@metric(cost=lambda n, a: 0.0, checks=(has_kernels,))
def spectral_norm_product(objective: Objective, key: jax.Array) -> Estimate:
    """Π_l ‖W_l‖₂, the product over layers of their kernels' largest singular values.

    A kernel is a parameter of two axes or more; the output axis comes last. A convolution's
    [height, width, in, out] is taken as a matrix [height · width · in, out]: the norm of that
    matrix, not of the convolution as an operator, which it bounds within √(height · width). Biases
    and batch norm's scales do not count; with batch norm the product is therefore no bound on the
    network's Lipschitz constant, and changes with scales that leave the network as it is. Units:
    those of the kernels, multiplied.

    Args:
        objective: where to measure.
        key: not used.

    Returns:
        `standard_error` is 0. `converged` if finite; the product overflows at 1e308. Details:
        `norms`, one a kernel in the order of `objective.layers()`, and `log_product`, natural.

    Raises:
        InputError: no parameter has two axes.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> params = {"a": jnp.diag(jnp.array([3.0, 1.0])), "b": 2 * jnp.eye(2), "c": jnp.ones(2)}
        >>> net = sf.Objective.from_function(
        ...     lambda w, batch: jnp.sum(w["a"]), params, (jnp.ones((1, 1)), jnp.ones(1)))
        >>> round(sf.measure(net, "spectral_norm_product").value, 4)
        6.0

    Source: Bartlett et al. (2017), equation (1.2); for convolutions the reshaped kernel of Yoshida
    and Miyato (2017), section 3.2, as in the code of Dziugaite et al. (2020).
    """
    norms = np.array([float(norm) for norm in _spectral_norms(_kernels(objective))])
    value, logarithm = _product(norms)
    return Estimate(
        value, 0.0, bool(np.isfinite(value)), {"norms": norms, "log_product": logarithm}
    )


def _kernels(objective: Objective) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(objective.params) if leaf.ndim >= 2]


@jax.jit
def _spectral_norms(kernels: list[jax.Array]) -> list[jax.Array]:
    return [_spectral_norm(kernel) for kernel in kernels]


def _spectral_norm(kernel: jax.Array) -> jax.Array:
    # There is no singular value decomposition in half precision.
    kind = jnp.promote_types(kernel.dtype, jnp.float32)
    return jnp.linalg.norm(kernel.reshape(-1, kernel.shape[-1]).astype(kind), ord=2)


def _product(norms: np.ndarray) -> tuple[float, float]:
    """Of many factors, and its logarithm."""
    with np.errstate(divide="ignore", over="ignore"):
        logarithm = np.log(norms).sum()
        return float(np.exp(logarithm)), float(logarithm)


@metric(cost=lambda n, a: 1 / 3, checks=(classifies, has_kernels))
def normalized_margin(
    objective: Objective,
    key: jax.Array,
    *,
    quantile: Fraction = 0.1,
    normalization: Literal["spectral", "none"] = "spectral",
) -> Estimate:
    """A low quantile of the margins f_y(x) − max_{j≠y} f_j(x), over the product of spectral norms.

    The margin is of the outputs before any softmax; the product is `spectral_norm_product`. The
    further factors of the paper's bound, ‖X‖ and the (2,1) norms, are left out. Negative where more
    than that share of examples is misclassified. Under `batch` batch norm the outputs are
    normalised by each chunk's own statistics. Of a restricted objective the product is that of the
    free kernels alone, the margin the whole network's. Units: those of the outputs, over the
    product's.

    Args:
        objective: where to measure.
        key: not used.
        quantile: which; 0 is the smallest margin. Between two examples it is linear.
        normalization: `spectral`, or `none` for the margin itself.

    Returns:
        `standard_error` is 0; `converged` if finite (a product of zero or beyond 1e308 is neither
        small nor large: the value is then infinite, NaN or 0 and not called converged). Details:
        `margin`, the quantile itself, `log_product` (0 for `none`) and `misclassified`, the share
        of negative margins.

    Raises:
        InputError: an objective without a network, labels that are not whole numbers, outputs that
            are not [n, classes], no parameter of two axes.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> model = sf.Model.from_functions(lambda key, x: jnp.eye(2), lambda w, x: x @ w)
        >>> data = (jnp.array([[5.0, 1.0], [0.0, 3.0]]), jnp.array([0, 1]))
        >>> net = sf.Objective.from_model(model, 2 * jnp.eye(2), {}, data)
        >>> round(sf.measure(net, "normalized_margin", quantile=0.0).value, 4)
        3.0

    Source: Bartlett et al. (2017), section 1; the 10 % quantile is that of Jiang et al. (2020).
    """
    margins = np.asarray(_margins(objective), np.float64)
    margin = float(np.quantile(margins, quantile))
    kernels = _kernels(objective) if normalization == "spectral" else []
    product, logarithm = _product(np.array([float(norm) for norm in _spectral_norms(kernels)]))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.float64(margin) / product)
    details = {"margin": margin, "log_product": logarithm, "misclassified": np.mean(margins < 0)}
    converged = bool(np.isfinite(value) and np.isfinite(product))
    return Estimate(value, 0.0, converged, details)


@jax.jit
def _margins(objective: Objective) -> jax.Array:
    outputs, labels = objective.outputs(objective.params), objective.data.labels
    own = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    chosen = jnp.take_along_axis(outputs, labels[:, None], axis=1)[:, 0]
    return chosen - jnp.max(outputs, axis=1, where=~own, initial=-jnp.inf)
