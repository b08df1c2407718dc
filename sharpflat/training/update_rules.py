"""Update rules, from Optax: g is the gradient of the mean loss over the batch, η the step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import optax

from sharpflat.registry import Fraction, NonNegative, Positive, optimizer, optimizers


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


def make_optimizer(name: str, arguments: dict[str, Any]) -> optax.GradientTransformation:
    """The optimizer `name`; the same object for equal arguments, so that programs are shared.

    Raises:
        InputError: an unknown name or argument.
    """
    entry = optimizers[name]
    return _made(entry.function, tuple(sorted(entry.arguments(arguments).items())))


@functools.lru_cache
def _made(
    function: Callable[..., Any], arguments: tuple[tuple[str, Any], ...]
) -> optax.GradientTransformation:
    return function(**dict(arguments))
