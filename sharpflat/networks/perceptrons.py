"""Fully connected networks: `mlp`, and the paper's F1 and F2."""

from __future__ import annotations

import jax
from flax import linen as nn

from sharpflat.registry import model
from sharpflat.validation import Count


class Perceptron(nn.Module):
    """depth × (dense of `width`, batch norm if asked for, ReLU), then a dense layer of `outputs`.

    Kernels start Glorot uniform and biases at zero, as in Keras 1.
    """

    outputs: int
    widths: tuple[int, ...]
    batch_norm: bool

    @nn.compact
    def __call__(self, inputs: jax.Array, *, batch_statistics: bool, dropout: bool) -> jax.Array:
        """Logits `[n, outputs]` of inputs `[n, ...]`, which are flattened."""
        kernel_init = nn.initializers.glorot_uniform()
        x = inputs.reshape(len(inputs), -1)
        for width in self.widths:
            x = nn.Dense(width, kernel_init=kernel_init)(x)
            if self.batch_norm:
                x = nn.BatchNorm(use_running_average=not batch_statistics, epsilon=1e-3)(x)
            x = nn.relu(x)
        return nn.Dense(self.outputs, kernel_init=kernel_init)(x)


@model
def mlp(
    outputs: int, *, width: Count | tuple[Count, ...] = 128, depth: Count = 2,
    batch_norm: bool = False,
) -> nn.Module:  # fmt: skip
    """A multilayer perceptron with ReLU.

    Args:
        outputs: units of the last layer.
        width: units of the hidden layers, or one number a layer (`depth` is then ignored).
        depth: hidden layers.
        batch_norm: batch norm between each hidden dense layer and its ReLU.
    """
    widths = (width,) * depth if isinstance(width, int) else tuple(width)
    return Perceptron(outputs, widths, batch_norm)


@model
def f1(outputs: int) -> nn.Module:
    """F1 of Keskar et al. (2017), appendix B: 5 × (512, batch norm, ReLU), for MNIST.

    The dense layers keep their biases, though batch norm takes them out, as in the authors' code.
    """
    return Perceptron(outputs, (512,) * 5, batch_norm=True)


@model
def f2(outputs: int) -> nn.Module:
    """F2 of Keskar et al. (2017), appendix B: 7 × (512, batch norm, ReLU), for TIMIT."""
    return Perceptron(outputs, (512,) * 7, batch_norm=True)
