"""An optimizer made: its arguments, and the factors on its learning rate."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import optax

from sharpflat.registry import optimizers, schedules
from sharpflat.training.averages import ema, swa
from sharpflat.training.conservative import conservative as several_steps
from sharpflat.training.learning_rate import factor_of
from sharpflat.validation import InputError

Build = Callable[[dict[str, Any]], optax.GradientTransformation]
ScalingRule = Literal["linear", "sqrt", "none"]
AVERAGES: dict[str, Callable[..., optax.GradientTransformation]] = {"ema": ema, "swa": swa}
POWERS: dict[ScalingRule, float] = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


def make_optimizer(
    name: str, arguments: dict[str, Any], **factors: Any
) -> optax.GradientTransformation:
    """The optimizer `name`; the same object for equal arguments, so that programs are shared.

    Arguments and refusals are those of `optimizer_of`.
    """
    return _made(optimizer_of(name, arguments, **factors))


def optimizer_of(
    name: str,
    arguments: dict[str, Any],
    *,
    free: Sequence[str] = (),
    scale: float = 1.0,
    schedule: dict[str, Any] | None = None,
    warmup: float = 0.0,
    updates: int = 0,
    average: tuple[Any, ...] | None = None,
    conservative: tuple[float, int] | None = None,
) -> Build:
    """The optimizer `name` as a function of its arguments `free`, by name; equal for equal others.

    These may be traced; whether an optimizer can be made of such numbers is its own affair.

    Args:
        name: of the optimizer.
        arguments: its own.
        free: names of those that the function takes.
        scale: of its learning rate, as `scaling` gives it.
        schedule: `{name: ..., argument: ...}`; None for a constant rate.
        warmup: updates in which the rate rises from 0.
        updates: of the whole training, for schedule and warm-up.
        average: of its parameters, `("ema", decay)` or `("swa", first, every)`, in updates.
        conservative: strength of the proximal term and steps on each batch; an update of schedule
            and warm-up is then a step.

    Raises:
        InputError: an unknown name or argument; a schedule shorter than its warm-up; an optimizer
            without a `learning_rate` to scale.
    """
    entry = optimizers[name]
    checked = entry.arguments(arguments)
    if (schedule or warmup or scale != 1) and "learning_rate" not in checked:
        raise InputError(f"optimizer: {name!r} has no learning_rate that could be made to change")
    if warmup and warmup >= updates:
        raise InputError(f"warmup: its {warmup:g} updates are not fewer than the {updates} of all")
    for refuse in entry.checks if updates else ():
        try:
            refuse(updates, checked)
        except InputError as error:
            raise InputError(f"optimizer.{error}") from None
    checked = {key: value for key, value in checked.items() if key not in free}
    factors = {
        "scale": scale, "schedule": schedule, "warmup": warmup, "updates": updates,
        "average": average, "conservative": conservative,
    }  # fmt: skip
    shape = schedules[schedule["name"]].function if schedule else None
    return _build(entry.function, shape, json.dumps([checked, factors], sort_keys=True))


def scaling(rule: ScalingRule, batch_size: int, reference: int) -> float:
    """The factor on a learning rate that was found at batch size `reference`.

    B / B₀ for `linear` (Goyal et al., 2017), its root for `sqrt` (Krizhevsky, 2014; Hoffer et al.,
    2017), 1 for `none`.
    """
    return (batch_size / reference) ** POWERS[rule]


def rate_at(step: int, arguments: Mapping[str, Any], **factors: Any) -> float:
    """The learning rate of the update after `step` of them, of `optimizer_of`'s arguments."""
    rate = _rate(arguments["learning_rate"], **factors)
    return float(rate(jnp.asarray(step)) if callable(rate) else rate)


def _rate(
    rate: Any,
    *,
    scale: float = 1.0,
    schedule: dict[str, Any] | None = None,
    warmup: float = 0.0,
    updates: int = 0,
    **_: Any,
) -> Any:
    """A number, or an Optax schedule."""
    rate = rate * scale
    if not (schedule or warmup):
        return rate
    given = {**(schedule or {"name": "constant"})}
    factor = factor_of(given.pop("name"), given, warmup, updates)
    return lambda count: rate * factor(count)


@functools.lru_cache
def _made(build: Build) -> optax.GradientTransformation:
    return build({})


@functools.lru_cache
def _build(function: Any, shape: Any, text: str) -> Build:
    fixed, factors = json.loads(text)

    def build(numbers: dict[str, Any]) -> optax.GradientTransformation:
        arguments = {**fixed, **numbers}
        if "learning_rate" in arguments:
            arguments["learning_rate"] = _rate(arguments["learning_rate"], **factors)
        rule = function(**arguments)
        if factors["conservative"] is not None:
            rule = several_steps(rule, *factors["conservative"])
        if factors["average"] is None:
            return rule
        kind, *given = factors["average"]
        return AVERAGES[kind](rule, *given)

    return build
