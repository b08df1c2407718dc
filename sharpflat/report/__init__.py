"""Reports: a study's records as figures and tables for the reader."""

from sharpflat.report.figures import draw, note, study_records
from sharpflat.report.tables import study_table

__all__ = ["draw", "note", "study_records", "study_table"]
