"""Update rules, from Optax: g is the gradient of the mean loss over the batch, η the step.

`learning_rate` may also be an Optax schedule, a function of the update's number.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
import optax.contrib

from sharpflat.registry import optimizer
from sharpflat.validation import Decay, NonNegative, Positive, PositiveDecay


@optimizer
def gradient_descent(*, learning_rate: Positive = 0.1) -> optax.GradientTransformation:
    """Plain (stochastic) gradient descent: θ_t = θ_{t−1} − η g_{t−1}."""
    return optax.sgd(learning_rate)


@optimizer
def momentum(*, learning_rate: Positive = 0.1, decay: Decay = 0.9) -> optax.GradientTransformation:
    """Heavy-ball momentum: m_t = λ m_{t−1} − η g_{t−1}, θ_t = θ_{t−1} + m_t (Polyak, 1964).

    m_t = −η Σ_k λ^k g_{t−1−k}. Under a schedule too η, that of update t, multiplies the whole sum,
    as Optax has it: m_t = (η_t/η_{t−1}) λ m_{t−1} − η_t g_{t−1}. So it does in `nesterov`, `sam`
    and `asam`.
    """
    return optax.sgd(learning_rate, momentum=decay)


@optimizer
def nesterov(*, learning_rate: Positive = 0.1, decay: Decay = 0.9) -> optax.GradientTransformation:
    """Nesterov's momentum in the form of Sutskever et al. (2013), as Optax has it."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)


@optimizer
def adam(
    *,
    learning_rate: Positive = 1e-3,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    epsilon: Positive = 1e-8,
) -> optax.GradientTransformation:
    """ADAM (Kingma and Ba, 2015), with the paper's default settings."""
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=epsilon)


@optimizer
def adamw(
    *,
    learning_rate: Positive = 1e-3,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    epsilon: Positive = 1e-8,
    weight_decay: NonNegative = 1e-4,
) -> optax.GradientTransformation:
    """ADAM with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay)


@optimizer
def adagrad(*, learning_rate: Positive = 1e-2) -> optax.GradientTransformation:
    """AdaGrad (Duchi et al., 2011)."""
    return optax.adagrad(learning_rate)


@optimizer
def rmsprop(*, learning_rate: Positive = 1e-3, decay: Decay = 0.9) -> optax.GradientTransformation:
    """RMSProp (Tieleman and Hinton, 2012)."""
    return optax.rmsprop(learning_rate, decay=decay)


@optimizer
def schedule_free(
    *, learning_rate: Positive = 1.0, b1: PositiveDecay = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free gradient descent (Defazio et al., 2024); what is evaluated is its average x."""
    # Optax counts updates from 0 in its rules, but from 1 in the weights of this average.
    weight = (lambda count: learning_rate(count - 1)) if callable(learning_rate) else learning_rate
    return optax.contrib.schedule_free(optax.sgd(learning_rate), learning_rate=weight, b1=b1)


@optimizer
def lars(
    *,
    learning_rate: Positive = 1.0,
    decay: Decay = 0.9,
    weight_decay: NonNegative = 0.0,
    trust: Positive = 1e-3,
) -> optax.GradientTransformation:
    """LARS: the step of each array in proportion to its own norm (You et al., 2017).

    m_t = λ m_{t−1} − η_t r (g + β w), θ_t = θ_{t−1} + m_t, where r = `trust` ‖w‖/‖g + β w‖ and β is
    the weight decay; under a schedule each gradient keeps the η of its own update. Biases and
    batch-norm parameters (arrays of one axis) have no decay. Where an array is all zero, as biases
    are at the start, r is 1: its first step is η g, of which momentum makes η g / (1 − λ) in all.
    Usual implementations leave biases out of r altogether, so that every step is one like that.
    Theirs and Optax's r is this one; that of the paper, ‖w‖/(‖g‖ + β ‖w‖), is another with decay.
    """
    return optax.lars(
        learning_rate, weight_decay, _weights, trust_coefficient=trust, momentum=decay
    )


@optimizer
def lamb(
    *,
    learning_rate: Positive = 1e-3,
    b1: Decay = 0.9,
    b2: Decay = 0.999,
    epsilon: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> optax.GradientTransformation:
    """LAMB: ADAM's step, of each array of weights in proportion to its norm (You et al., 2020).

    θ_t = θ_{t−1} − η (‖w‖/‖u + β w‖) (u + β w), u ADAM's step and β the weight decay. Biases and
    batch-norm parameters (arrays of one axis) make ADAM's own step, without decay, as in the usual
    implementations.
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=epsilon),
        optax.add_decayed_weights(weight_decay, _weights),
        optax.masked(optax.scale_by_trust_ratio(), _weights),
        optax.scale_by_learning_rate(learning_rate),
    )


def _weights(params: Any) -> Any:
    """Whether each array is of weights: biases and batch-norm parameters have one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
