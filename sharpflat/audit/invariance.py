"""Which metrics a change of parametrisation moves, though the network's function stays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from sharpflat import registry
from sharpflat.audit import tables
from sharpflat.audit.changes import Change
from sharpflat.audit.measuring import (
    UNCERTIFIED,
    Spec,
    chosen,
    estimates,
    failure,
    mark,
    shown,
    with_error,
)
from sharpflat.audit.moments import followed
from sharpflat.audit.reparametrisations import (
    batch_norm_scale,
    check_alpha,
    logit_rescaling,
    permuted_units,
    relu_rescaling,
)
from sharpflat.audit.verdicts import (
    PAIRED,
    RESOLUTION,
    SAME,
    TOLERANCE,
    Verdict,
    factor,
    factor_error,
    far,
    verdict,
)
from sharpflat.objective import BatchNormPolicy, Objective
from sharpflat.sharpness import Estimate
from sharpflat.sharpness.measuring import check_finite
from sharpflat.validation import InputError

ALPHA = 4.0
"""The factor of the rescalings by default; a power of two leaves no rounding."""


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
        verdict: see `verdict`; after a change that does not keep the function, `fooled` means
            no more than moved.
    """

    metric: str
    arguments: dict[str, Any]
    change: str
    before: Estimate
    after: Estimate
    factor: float
    outputs_deviation: float
    verdict: Verdict

    @property
    def label(self) -> str:
        """The metric's name, with the arguments that are not its defaults."""
        return registry.metrics[self.metric].label(self.arguments)


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
        return {row.label: row for row in sorted(found, key=lambda row: far(row.factor))}

    @property
    def invariant(self) -> list[str]:
        """The metrics that every change that keeps the function leaves alone."""
        others = {row.label for row in self._kept() if row.verdict != "invariant"}
        return [
            name for name in dict.fromkeys(row.label for row in self.rows) if name not in others
        ]

    def _kept(self) -> list[InvarianceRow]:
        keep = {change.name for change in self.changes if change.preserves}
        return [row for row in self.rows if row.change in keep]

    def _cells(self) -> list[list[str]]:
        cells = [["metric", "value", *(change.name for change in self.changes)]]
        for start in range(0, len(self.rows), len(self.changes)):
            group = self.rows[start : start + len(self.changes)]
            said = [_said(row, change) for row, change in zip(group, self.changes, strict=True)]
            cells.append([group[0].label, shown(group[0].before), *said])
        return cells

    def _notes(self) -> list[str]:
        worst = [f"{name} (×{row.factor:.4g}, {row.change})" for name, row in self.fooled.items()]
        notes = [
            f"a change that keeps the function fools (each by the worst of them): "
            f"{', '.join(sorted(worst)) or 'none'}",
            f"no such change moves: {', '.join(self.invariant) or 'none'}",
        ]
        notes += [self._made(change) for change in self.changes]
        notes += [f"not made: {reason}" for reason in self.not_made]
        notes += [
            f"batch norm: {self.batch_norm}",
            f"{UNCERTIFIED}: the metric's own certificate did not hold; ± ?: error not known",
            f"invariant: certified, and equal within {SAME:.1%} plus three standard errors (none "
            f"where not known), these no more than {RESOLUTION:.0%} together, or within "
            f"{PAIRED:.1%}",
            f"fooled: moved by more than {TOLERANCE:.0%} plus three standard errors; by a factor "
            f"of two, where a certificate or an error is lacking",
            "moved, same: these two, where the function itself changed; undecided: all else",
        ]
        notes += [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        failed = [(row, failure(row.before) or failure(row.after)) for row in self.rows]
        return notes + [
            f"failed: {row.label}, {row.change}: {reason}" for row, reason in failed if reason
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

    Of the inputs `opt_state` follows a change that keeps the function: its moments become those of
    the gradients after it (see `followed`). All others stay as they are:
    `distance_from_initialization` is measured from the same start, for that is how it would be
    fooled.

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
            layer or input; parameters, a state or a loss there that are not finite; a metric that
            reads Adagrad's sums, where it is not told what they began with.

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
    requests, skipped = chosen(objective, metrics, inputs)
    check_finite(objective)
    changes, not_made = all_changes(objective, alpha, layer)

    def measured(name: str, where: Objective, state: Any) -> list[Estimate]:
        given = {**inputs, "opt_state": state} if "opt_state" in inputs else inputs
        return estimates(where, requests, seed, given, lambda metric: say(f"{name}: {metric}"))

    state = inputs.get("opt_state")
    states = [state] * len(changes)
    if reading := [one for one, _ in requests if "opt_state" in registry.metrics[one].inputs]:
        try:
            numbers = inputs.get("hyperparams") or {}
            states = [followed(state, change, numbers) for change in changes]
        except InputError as error:
            if metrics is not None:
                raise
            requests = [request for request in requests if request[0] not in reading]
            skipped |= dict.fromkeys(reading, str(error))
    before = measured("as it is", objective, state)
    after = [
        measured(change.name, change.objective, moved)
        for change, moved in zip(changes, states, strict=True)
    ]
    rows = [
        InvarianceRow(
            name, arguments, change.name, before[i], there[i],
            factor(before[i].value, there[i].value), change.deviation,
            verdict(before[i], there[i]),
        )
        for i, (name, arguments) in enumerate(requests)
        for change, there in zip(changes, after, strict=True)
    ]  # fmt: skip
    policy = objective.batch_norm
    return InvarianceTable(tuple(rows), changes, alpha, policy, not_made, skipped)


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


def _said(row: InvarianceRow, change: Change) -> str:
    if failure(row.before) or failure(row.after):
        return "failed"
    word = row.verdict if change.preserves else WORDS[row.verdict]
    text = with_error(f"×{row.factor:.4g}", factor_error(row.before, row.after))
    return f"{text} {word}{mark(row.after)}"


WORDS = {"invariant": "same", "fooled": "moved", "undecided": "undecided"}
