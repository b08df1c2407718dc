"""How many digits of a metric survive in coarser number formats."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sharpflat import registry
from sharpflat.audit import tables
from sharpflat.audit.measuring import (
    UNCERTIFIED,
    Spec,
    chosen,
    estimates,
    failure,
    mark,
    shown,
)
from sharpflat.objective import BatchNormPolicy, Objective
from sharpflat.sharpness import Estimate
from sharpflat.sharpness.measuring import check_finite

REFERENCE = "float64"
MOST_DIGITS = 16.0
AGREE = 3.0
"""Standard errors within which two random estimates agree."""


class PrecisionRow(NamedTuple):
    """One metric in one format, beside float64.

    Attributes:
        metric: its name.
        arguments: all of them.
        format: `bfloat16`, `tensorfloat32`, `float32` or `float64`.
        estimate: what it gave there; NaN with the error in its details where it failed.
        reference: what it gave in float64.
    """

    metric: str
    arguments: dict[str, Any]
    format: str
    estimate: Estimate
    reference: Estimate

    @property
    def difference(self) -> float:
        """|v − v64|."""
        return abs(self.estimate.value - self.reference.value)

    @property
    def digits(self) -> float:
        """−log10 |v − v64| / |v64|, between 0 and `resolution`; NaN where either is not finite."""
        size = abs(self.reference.value)
        if not math.isfinite(self.difference):
            return math.nan
        if self.difference == 0 or size == 0:
            return self.resolution if self.difference == 0 else 0.0
        return min(self.resolution, max(0.0, -math.log10(self.difference / size)))

    @property
    def resolution(self) -> float:
        """The digits that there are: 16, or what the brackets of a bisection leave of them.

        A bisection gives a node of a grid, in every format the same: its value is known to half
        the width of its last bracket, √(high / low) − 1, the wider one of the two estimates.
        """
        return min(map(_within_bracket, (self.estimate.details, self.reference.details)))

    @property
    def error(self) -> float:
        """The combined standard error; one that is not known counts as none."""
        return math.hypot(self.estimate.standard_error or 0, self.reference.standard_error or 0)

    @property
    def errors(self) -> float | None:
        """|v − v64| in combined standard errors; None where there is none above zero."""
        return self.difference / self.error if self.error else None


@dataclass(frozen=True, repr=False)
class PrecisionTable:
    """Metrics against number formats; printing it shows all of it.

    Attributes:
        rows: a row a metric and format.
        formats: float64 last.
        batch_norm: the objective's policy; None for a plain loss function.
        skipped: metrics that could not be measured, with the reason.
    """

    rows: tuple[PrecisionRow, ...]
    formats: tuple[str, ...]
    batch_norm: BatchNormPolicy | None
    skipped: dict[str, str]

    def __repr__(self) -> str:
        """The table as plain text."""
        return tables.text(self._cells(), self._notes())

    def markdown(self) -> str:
        """The table as Markdown."""
        return tables.markdown(self._cells(), self._notes())

    def _cells(self) -> list[list[str]]:
        cells = [["metric", *self.formats]]
        for start in range(0, len(self.rows), len(self.formats)):
            *group, last = self.rows[start : start + len(self.formats)]
            name = registry.metrics[last.metric].label(last.arguments)
            cells.append([name, *map(_said, group), shown(last.estimate)])
        return cells

    def _notes(self) -> list[str]:
        notes = [
            "digits: those that agree with float64; s.e.: where random numbers, others in each "
            f"format, make a difference of up to {AGREE:g} combined standard errors, the "
            "difference in these, and their size in percent of the value, where it has one",
            "digits of a bisection: no more than the width of its last bracket leaves, which is "
            "the same in every format",
            f"{UNCERTIFIED}: the metric's own certificate did not hold there",
        ]
        if self.batch_norm is not None:
            notes.append(f"batch norm: {self.batch_norm}")
        if "tensorfloat32" not in self.formats:
            notes.append(f"tensorfloat32: none on this platform ({jax.default_backend()})")
        notes += [f"skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        failed = [(row, failure(row.estimate)) for row in self.rows]
        return notes + [
            f"failed: {registry.metrics[row.metric].label(row.arguments)} in {row.format}: {reason}"
            for row, reason in failed
            if reason
        ]


def precision_table(
    objective: Objective,
    metrics: Spec | Sequence[Spec] | None = None,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
    **inputs: Any,
) -> PrecisionTable:
    """Metrics in bfloat16, TF32 on a GPU, float32 and float64, and how many digits agree.

    Parameters, state, data and inputs are cast, and all is computed in that format as far as the
    metric itself does not widen it; float32 means float32 in matrix products too, on a GPU as
    well. JAX draws other random numbers in other formats: a difference within three combined
    standard errors is given in these instead of digits. One that is not known (None) counts as
    none, and the digits then show the draws as well as the format.

    Args:
        objective: where to measure.
        metrics: a name, `{name: arguments}`, or a list of these; None for all that the objective
            and the inputs allow, the others are listed as skipped.
        seed: of all that is random.
        say: told of each measurement before it is made.
        **inputs: what metrics need beside the objective (`initial_params`, `opt_state`, ...).

    Returns:
        A table. A metric that fails in a format is NaN there, its error among the notes.

    Raises:
        InputError: an unknown metric, argument or input; parameters, a state or a loss there that
            are not finite.

    Example:
        >>> import jax.numpy as jnp, sharpflat as sf
        >>> bowl = sf.Objective.from_function(
        ...     lambda w, batch: jnp.sum(w**2), jnp.array([0.1, 0.2]),
        ...     (jnp.ones((1, 1)), jnp.ones(1)))
        >>> table = sf.precision_table(bowl, "parameter_norm")
        >>> [row.format for row in table.rows if row.digits > 6]
        ['float32', 'float64']
    """
    requests, skipped = chosen(objective, metrics, inputs)
    check_finite(objective)
    formats = formats_here()

    def measured(format: str) -> list[Estimate]:
        with _computing_in(format):
            where, given = _cast(objective, format), _cast(inputs, format)
            return estimates(where, requests, seed, given, lambda name: say(f"{format}: {name}"))

    found = {format: measured(format) for format in formats}
    rows = [
        PrecisionRow(name, arguments, format, found[format][i], found[REFERENCE][i])
        for i, (name, arguments) in enumerate(requests)
        for format in formats
    ]
    return PrecisionTable(tuple(rows), formats, objective.batch_norm, skipped)


def formats_here() -> tuple[str, ...]:
    """Those of this platform, float64 last."""
    rounded = ("tensorfloat32",) if jax.default_backend() == "gpu" else ()
    return ("bfloat16", *rounded, "float32", REFERENCE)


@contextlib.contextmanager
def _computing_in(format: str) -> Iterator[None]:
    # On a GPU the products of float32 matrices are rounded to TF32 unless "highest" is asked for.
    products = format if format == "tensorfloat32" else "highest"
    with jax.enable_x64(format == "float64"), jax.default_matmul_precision(products):
        yield


def _cast(tree: Any, format: str) -> Any:
    """The tree with its floating-point arrays in the format that holds `format`'s numbers."""
    dtype = jnp.dtype("float32" if format == "tensorfloat32" else format)

    def leaf(value: Any) -> Any:
        kind = getattr(value, "dtype", None)
        if kind is None or jnp.issubdtype(kind, jax.dtypes.prng_key):
            return value
        array = np.asarray(value)
        return jnp.asarray(array.astype(dtype) if jnp.issubdtype(kind, jnp.floating) else array)

    return jax.tree.map(leaf, tree)


def _within_bracket(details: Mapping[str, Any]) -> float:
    """Digits of the middle of a bisection's `low` and `high`, after `evaluations`; at most 16."""
    if not {"low", "high", "evaluations"} <= set(details):
        return MOST_DIGITS
    low, high = (np.asarray(details[end], np.float64) for end in ("low", "high"))
    with np.errstate(divide="ignore", invalid="ignore"):
        digits = np.nan_to_num(-np.log10(np.sqrt(high / low) - 1), nan=0.0)
    return float(np.clip(digits, 0.0, MOST_DIGITS).min()) + 0.0


def _said(row: PrecisionRow) -> str:
    reason = failure(row.estimate)
    if reason is not None:
        return reason.partition(":")[0]
    if math.isnan(row.digits):
        return f"not finite{mark(row.estimate)}"
    if row.errors is None or row.errors > AGREE:
        return f"{row.digits:.1f} digits{mark(row.estimate)}"
    size = abs(row.reference.value)
    error = f"{100 * row.error / size:.2g}%" if size else f"{row.error:.2g}"
    return f"{row.errors:.1f} s.e. of {error}{mark(row.estimate)}"
