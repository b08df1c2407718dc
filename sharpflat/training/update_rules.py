"""Update rules, from Optax: g is the gradient of the mean loss over the batch, η the step.

`learning_rate` may also be an Optax schedule, a function of the update's number.
"""

from __future__ import annotations

import optax
import optax.contrib

from sharpflat.registry import Fraction, NonNegative, Positive, optimizer


@optimizer
def gradient_descent(*, learning_rate: Positive = 0.1) -> optax.GradientTransformation:
    """Plain (stochastic) gradient descent: θ_t = θ_{t−1} − η g_{t−1}."""
    return optax.sgd(learning_rate)


@optimizer
def momentum(
    *, learning_rate: Positive = 0.1, decay: Fraction = 0.9
) -> optax.GradientTransformation:
    """Heavy-ball momentum: m_t = λ m_{t−1} − η g_{t−1}, θ_t = θ_{t−1} + m_t (Polyak, 1964)."""
    return optax.sgd(learning_rate, momentum=decay)


@optimizer
def nesterov(
    *, learning_rate: Positive = 0.1, decay: Fraction = 0.9
) -> optax.GradientTransformation:
    """Nesterov's momentum in the form of Sutskever et al. (2013), as Optax has it."""
    return optax.sgd(learning_rate, momentum=decay, nesterov=True)


@optimizer
def adam(
    *,
    learning_rate: Positive = 1e-3,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    epsilon: Positive = 1e-8,
) -> optax.GradientTransformation:
    """ADAM (Kingma and Ba, 2015), with the paper's default settings."""
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=epsilon)


@optimizer
def adamw(
    *,
    learning_rate: Positive = 1e-3,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
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
def rmsprop(
    *, learning_rate: Positive = 1e-3, decay: Fraction = 0.9
) -> optax.GradientTransformation:
    """RMSProp (Tieleman and Hinton, 2012)."""
    return optax.rmsprop(learning_rate, decay=decay)


@optimizer
def schedule_free(
    *, learning_rate: Positive = 1.0, b1: Fraction = 0.9
) -> optax.GradientTransformationExtraArgs:
    """Schedule-free gradient descent (Defazio et al., 2024); what is evaluated is its average x."""
    base = optax.sgd(learning_rate)
    return optax.contrib.schedule_free(base, learning_rate=learning_rate, b1=b1)


@optimizer
def lars(
    *,
    learning_rate: Positive = 1.0,
    decay: Fraction = 0.9,
    weight_decay: NonNegative = 0.0,
    trust: Positive = 1e-3,
) -> optax.GradientTransformation:
    """LARS: each layer's step in proportion to its own norm (You et al., 2017)."""
    return optax.lars(
        learning_rate, weight_decay=weight_decay, trust_coefficient=trust, momentum=decay
    )


@optimizer
def lamb(
    *,
    learning_rate: Positive = 1e-3,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    epsilon: Positive = 1e-6,
    weight_decay: NonNegative = 0.0,
) -> optax.GradientTransformation:
    """LAMB: ADAM's step, in proportion to each layer's norm (You et al., 2020)."""
    return optax.lamb(learning_rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay)
