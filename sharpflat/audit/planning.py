"""What an audit is going to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sharpflat.audit.invariance import ALPHA, all_changes
from sharpflat.audit.measuring import Requests, Spec, chosen
from sharpflat.audit.precision import formats_here
from sharpflat.objective import Objective


def planned(
    objective: Objective,
    metrics: Spec | Sequence[Spec] | None,
    inputs: Mapping[str, Any],
    precision: bool,
) -> Requests:
    """Every measurement of `invariance_table` and, if asked for, `precision_table`, one by one.

    Raises:
        InputError: as these tables do, before any work.
    """
    changes, _ = all_changes(objective, ALPHA, None)
    requests, _ = chosen(objective, metrics, inputs)
    asked = requests * (1 + len(changes))
    if precision:
        asked += requests * len(formats_here())
    return asked
