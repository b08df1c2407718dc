"""Reports: a study's records as figures and tables for the reader."""

from sharpflat.report.figures import draw, study_records
from sharpflat.report.tables import study_table

__all__ = ["draw", "study_records", "study_table"]
