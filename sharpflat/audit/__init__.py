"""Audits: which changes of parametrisation, and which number formats, a metric withstands."""

from sharpflat.audit.invariance import InvarianceRow, InvarianceTable, invariance_table
from sharpflat.audit.planning import planned
from sharpflat.audit.precision import PrecisionRow, PrecisionTable, precision_table

__all__ = [
    "InvarianceRow",
    "InvarianceTable",
    "PrecisionRow",
    "PrecisionTable",
    "invariance_table",
    "planned",
    "precision_table",
]
