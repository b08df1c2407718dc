"""Which metrics a change of parametrisation moves, though the network's function stays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np

from sharpflat.audit import tables
from sharpflat.audit.changes import Change
from sharpflat.audit.measuring import (
    UNCERTIFIED,
    Spec,
    chosen,
    estimates,
    failure,
    label,
    mark,
    shown,
)
from sharpflat.audit.reparametrisations import (
    batch_norm_scale,
    check_alpha,
    logit_rescaling,
    permuted_units,
    relu_rescaling,
)
from sharpflat.objective import BatchNormPolicy, Objective
from sharpflat.registry import InputError
from sharpflat.sharpness import Estimate

Verdict = Literal["invariant", "fooled", "undecided"]

ALPHA = 4.0
"""The factor of the rescalings by default; a power of two leaves no rounding."""
SAME = 0.005
"""Relative: rounding, and what solvers leave, is below it."""
TOLERANCE = 0.02
"""Relative: a solver's certificate is within 1 %, and there are two of them."""
RESOLUTION = 0.2
"""A comparison that cannot tell a change of this size decides nothing."""
PAIRED = 1e-3
"""Closer than this, two random estimates drew the same numbers to the same effect."""
FAR = 0.5
"""Beyond this (a factor of two) a change is believed without certificates."""

UNFIT = {"opt_state": "the optimizer's state belongs to the parameters as they were trained"}


class InvarianceRow(NamedTuple):
    """One metric before and after one change.

    Attributes:
        metric: its name.
        arguments: all of them.
        change: the change's name.
        before: the estimate at the objective as it was given.
        after: the same with the same seed after the change.
        factor: after / before.
        outputs_deviation: how far the change moved the outputs, relative to their norm.
        verdict: see `verdict`.
    """

    metric: str
    arguments: dict[str, Any]
    change: str
    before: Estimate
    after: Estimate
    factor: float
    outputs_deviation: float
    verdict: Verdict


@dataclass(frozen=True, repr=False)
class InvarianceTable:
    """Metrics against changes; printing it shows all of it.

    Attributes:
        rows: a row a metric and change.
        changes: what was changed.
        alpha: the factor of the rescalings.
        batch_norm: the objective's policy.
        not_made: changes that the network has no place for, with the reason.
        skipped: metrics that could not be measured, with the reason.
    """

    rows: tuple[InvarianceRow, ...]
    changes: tuple[Change, ...]
    alpha: float
    batch_norm: BatchNormPolicy | None
    not_made: tuple[str, ...]
    skipped: dict[str, str]

    def __repr__(self) -> str:
        """The table as plain text."""
        return tables.text(self._cells(), self._notes())

    def markdown(self) -> str:
        """The table as Markdown."""
        return tables.markdown(self._cells(), self._notes())

    @property
    def fooled(self) -> dict[str, InvarianceRow]:
        """By metric, of the changes that keep the function the one that fools it most."""
        found = [row for row in self._kept() if row.verdict == "fooled"]
        return {_label(row): row for row in sorted(found, key=lambda row: _far(row.factor))}

    @property
    def invariant(self) -> list[str]:
        """The metrics that every change that keeps the function leaves alone."""
        others = {_label(row) for row in self._kept() if row.verdict != "invariant"}
        return [name for name in dict.fromkeys(map(_label, self.rows)) if name not in others]

    def _kept(self) -> list[InvarianceRow]:
        keep = {change.name for change in self.changes if change.preserves}
        return [row for row in self.rows if row.change in keep]

    def _cells(self) -> list[list[str]]:
        cells = [["metric", "value", *(change.name for change in self.changes)]]
        for start in range(0, len(self.rows), len(self.changes)):
            group = self.rows[start : start + len(self.changes)]
            said = [f"×{row.factor:.4g} {row.verdict}{mark(row.after)}" for row in group]
            cells.append([_label(group[0]), shown(group[0].before), *said])
        return cells

    def _notes(self) -> list[str]:
        worst = [f"{name} (×{row.factor:.4g}, {row.change})" for name, row in self.fooled.items()]
        notes = [
            f"a change that keeps the function fools: {', '.join(sorted(worst)) or 'none'}",
            f"no such change moves: {', '.join(self.invariant) or 'none'}",
        ]
        notes += [self._made(change) for change in self.changes]
        notes += [f"not made: {reason}" for reason in self.not_made]
        notes += [
            f"batch norm: {self.batch_norm}",
            f"invariant: both certificates held ({UNCERTIFIED}: it did not), and equal within "
            f"{SAME:.1%} and three combined standard errors, together no more than "
            f"{RESOLUTION:.0%}, or within {PAIRED:.1%}; fooled: apart by more than {TOLERANCE:.0%} "
            f"and those errors, and by a factor of two where a certificate or an error (± ?) is "
            f"lacking; undecided: all else",
        ]
        notes += [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        failed = [(row, failure(row.before) or failure(row.after)) for row in self.rows]
        return notes + [
            f"failed: {_label(row)}, {row.change}: {reason}" for row, reason in failed if reason
        ]

    def _made(self, change: Change) -> str:
        factor = "" if change.name == "permuted_units" else f", α = {self.alpha:g}"
        kept = f"; leaves {', '.join(change.untouched)} alone" if change.untouched else ""
        moved = f"outputs moved by {change.deviation:.1g} of their norm"
        return f"{change.name}: {', '.join(change.layers)}{factor}; {moved}{kept}"


def invariance_table(
    objective: Objective,
    metrics: Spec | Sequence[Spec] | None = None,
    *,
    seed: int = 0,
    alpha: float = ALPHA,
    layer: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    **inputs: Any,
) -> InvarianceTable:
    """Metrics before and after changes of the parameters that keep the network's function.

    `relu_rescaling`, `batch_norm_scale` and `permuted_units` keep it, which is checked on the
    outputs of all examples; `logit_rescaling` multiplies them, so that only the predictions stay.
    Each is made at every hidden layer that will do, all of these in one change: made at one layer,
    it would leave alone a measure that looks at another. Kernels that it still does not touch, as
    `batch_norm_scale` the last, are named below the table.

    The seed is the same throughout, but random numbers are tied to coordinates: after a change they
    may mean other directions, and standard errors decide. What is seen at one α is evidence of
    invariance, no proof.

    The inputs stay as they are: `distance_from_initialization` is measured from the same start,
    for that is how it would be fooled. Metrics of an optimizer's state are skipped, as that state
    belongs to the parameters before.

    Args:
        objective: of a network whose parameters are named as Flax's, `Dense_0/kernel`.
        metrics: a name, `{name: arguments}`, or a list of these; None for all that the objective
            and the inputs allow, the others are listed as skipped.
        seed: of all that is random.
        alpha: factor of the rescalings, positive and not 1.
        layer: the one hidden layer to change, as `Dense_0`; None for all.
        say: told of each measurement before it is made.
        **inputs: what metrics need beside the objective (`initial_params`, ...).

    Returns:
        A table; see `verdict` for how it judges.

    Raises:
        InputError: no network, or none in which a change keeps the function; an unknown metric,
            layer or input.

    Example:
        >>> import jax, jax.numpy as jnp, sharpflat as sf
        >>> x, y = jnp.array([[1.0, 0.5], [-0.3, 2.0]]), jnp.array([0, 1])
        >>> model = sf.Model.of(sf.models["mlp"](2, width=4, depth=1))
        >>> params, state = model.init(jax.random.key(0), x)
        >>> net = sf.Objective.from_model(model, params, state, (x, y))
        >>> table = sf.invariance_table(net, ["parameter_norm", "path_norm"])
        >>> list(table.fooled)
        ['parameter_norm']

    Source: Dinh et al. (2017), "Sharp Minima Can Generalize For Deep Nets".
    """
    objective.need_outputs("invariance_table")
    requests, skipped = chosen(objective, metrics, inputs, UNFIT)
    changes, not_made = all_changes(objective, alpha, layer)

    def measured(name: str, where: Objective) -> list[Estimate]:
        return estimates(where, requests, seed, inputs, lambda metric: say(f"{name}: {metric}"))

    before = measured("as it is", objective)
    after = [measured(change.name, change.objective) for change in changes]
    rows = [
        InvarianceRow(
            name, arguments, change.name, before[i], there[i],
            _factor(before[i].value, there[i].value), change.deviation,
            verdict(before[i], there[i]),
        )
        for i, (name, arguments) in enumerate(requests)
        for change, there in zip(changes, after, strict=True)
    ]  # fmt: skip
    policy = objective.batch_norm
    return InvarianceTable(tuple(rows), changes, alpha, policy, not_made, skipped)


def verdict(before: Estimate, after: Estimate) -> Verdict:
    """Whether a change moved a metric: `fooled` if so, `invariant` if not, else `undecided`.

    With d = |after − before|, m the larger of the two magnitudes and s the combined standard error,

    - `fooled`: d > 2 % m + 3 s; and d > m / 2, a factor of two, where a certificate did not hold or
      a standard error is not known;
    - `invariant`: both certificates held, d ≤ 0.5 % m + 3 s, and that bound is at most 20 % m (or d
      below 0.1 % m, which random estimates reach only where the change leaves each draw alone);
    - `undecided`: all else, and what is not finite.
    """
    values = np.array([before.value, after.value])
    if not np.isfinite(values).all():
        return "undecided"
    difference, size = float(np.ptp(values)), float(np.abs(values).max())
    noise = 3 * math.hypot(before.standard_error or 0, after.standard_error or 0)
    certified = before.converged and after.converged
    known = None not in (before.standard_error, after.standard_error)
    if difference > max(TOLERANCE * size + noise, 0 if certified and known else FAR * size):
        return "fooled"
    resolved = SAME * size + noise <= RESOLUTION * size or difference <= PAIRED * size
    same = difference <= SAME * size + noise
    return "invariant" if certified and same and resolved else "undecided"


def all_changes(
    objective: Objective, alpha: float, layer: str | None
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Every kind of change that the network has a place for, and why it has none for others.

    Raises:
        InputError: as `invariance_table`.
    """
    check_alpha(alpha)
    kinds: list[Callable[[Objective], Change]] = [
        partial(relu_rescaling, alpha=alpha, layer=layer),
        partial(batch_norm_scale, alpha=alpha, layer=layer),
        partial(permuted_units, layer=layer),
        partial(logit_rescaling, alpha=alpha),
    ]
    changes, not_made = [], []
    for change in kinds:
        try:
            changes.append(change(objective))
        except InputError as error:
            not_made.append(str(error))
    if not any(change.preserves for change in changes):
        raise InputError(f"invariance_table: no change keeps the function: {'; '.join(not_made)}")
    return tuple(changes), tuple(not_made)


def _factor(before: float, after: float) -> float:
    if before == after:
        return 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.float64(after) / before)


def _far(factor: float) -> float:
    """How far from 1; a change of sign is the farthest."""
    return abs(math.log(factor)) if 0 < factor < math.inf else math.inf


def _label(row: InvarianceRow) -> str:
    return label(row.metric, row.arguments)
