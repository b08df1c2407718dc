"""The convolutional networks of Keskar et al. (ICLR 2017): C1 to C4.

Layers follow the authors' code (github.com/keskarnitish/large-batch-training, `network_zoo.py`):
kernels Glorot-uniform as in Keras 1, convolutions with a bias although batch norm follows (the
Keras default), batch norm with Keras's epsilon, everything padded "SAME".
"""

from __future__ import annotations

from functools import partial

import jax
from flax import linen as nn

from sharpflat.networks.convolution import convolution, max_pool
from sharpflat.registry import model
from sharpflat.validation import Fraction


class Convolutional(nn.Module):
    """Stacks of convolutions, each stack ended by a stride-2 max-pool, then dense layers.

    Batch norm and ReLU follow every layer but the last.
    """

    outputs: int
    stacks: tuple[tuple[int, ...], ...]  # features of each convolution, stack by stack
    dense: tuple[int, ...]
    kernel: int  # height and width of every kernel
    pool: int  # height and width of every pooling window
    stack_dropout: tuple[float, ...]  # one rate a stack, after each convolution but its last
    flat_dropout: float  # on what enters the dense layers
    dense_dropout: float  # after each dense layer but the last

    @nn.compact
    def __call__(self, inputs: jax.Array, *, batch_statistics: bool, dropout: bool) -> jax.Array:
        """Logits of `inputs` [n, height, width, channels]."""
        layer = partial(
            nn.Conv,
            kernel_size=(self.kernel, self.kernel),
            kernel_init=nn.initializers.glorot_uniform(),
            conv_general_dilated=convolution,
        )
        norm = partial(
            nn.BatchNorm, use_running_average=not batch_statistics, momentum=0.99, epsilon=1e-3
        )
        dense = partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())
        drop = partial(nn.Dropout, deterministic=not dropout)

        x = inputs
        for stack, rate in zip(self.stacks, self.stack_dropout, strict=True):
            for position, features in enumerate(stack, start=1):
                x = nn.relu(norm()(layer(features)(x)))
                if position < len(stack):
                    x = drop(rate)(x)
            x = max_pool(x, (self.pool, self.pool), (2, 2), "SAME")
        x = drop(self.flat_dropout)(x.reshape(len(x), -1))
        for features in self.dense:
            x = drop(self.dense_dropout)(nn.relu(norm()(dense(features)(x))))
        return dense(self.outputs)(x)


@model
def c1(outputs: int, *, dropout: Fraction = 0.5) -> nn.Module:
    """C1 of Keskar et al. (2017), for CIFAR-10: AlexNet-like, shallow.

    2 × [64 5×5, max-pool 3 stride 2] → dense 384, 192 → outputs. The paper's text gives the
    convolutions stride 2; the authors' code, followed here, has stride 1 and pools with stride 2.

    Args:
        outputs: number of classes.
        dropout: rate on both dense layers (paper: 0.5).
    """
    return Convolutional(
        outputs, stacks=((64,), (64,)), dense=(384, 192), kernel=5, pool=3,
        stack_dropout=(0.0, 0.0), flat_dropout=0.0, dense_dropout=dropout,
    )  # fmt: skip


@model
def c2(outputs: int, *, dropout: bool = False) -> nn.Module:
    """C2 of Keskar et al. (2017), for CIFAR-10: VGG-like, deep.

    2×[64], 2×[128], 3×[256], 3×[512], 3×[512], all 3×3, max-pool 2 after each stack → dense 512 →
    outputs.

    Args:
        outputs: number of classes.
        dropout: add what the authors' code has and the paper's text does not mention: dropout after
            each convolution but a stack's last (0.3 in the first stack, 0.4 in the others), and 0.5
            before and after the dense layer.
    """
    features = ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3)
    rate = 0.5 if dropout else 0.0
    return Convolutional(
        outputs, stacks=features, dense=(512,), kernel=3, pool=2,
        stack_dropout=(0.3, 0.4, 0.4, 0.4, 0.4) if dropout else (0.0,) * 5,
        flat_dropout=rate, dense_dropout=rate,
    )  # fmt: skip


@model
def c3(outputs: int, *, dropout: Fraction = 0.5) -> nn.Module:
    """C3 of Keskar et al. (2017): the network C1, for CIFAR-100.

    Args:
        outputs: number of classes.
        dropout: see `c1`.
    """
    return c1(outputs, dropout=dropout)


@model
def c4(outputs: int, *, dropout: bool = False) -> nn.Module:
    """C4 of Keskar et al. (2017): the network C2, for CIFAR-100.

    Args:
        outputs: number of classes.
        dropout: see `c2`.
    """
    return c2(outputs, dropout=dropout)
