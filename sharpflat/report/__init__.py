"""Reports: a study's records as figures and tables for the reader, and what is still to be done."""

from sharpflat.report.figures import draw, note, study_records
from sharpflat.report.plan import effort, plan_lines
from sharpflat.report.state import begun_studies, damages
from sharpflat.report.tables import study_table

__all__ = [
    "begun_studies",
    "damages",
    "draw",
    "effort",
    "note",
    "plan_lines",
    "study_records",
    "study_table",
]
