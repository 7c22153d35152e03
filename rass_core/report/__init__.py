"""The report of a run: one HTML file that shows what was found, opened from disk, with no network."""

from rass_core.report.page import write_report

__all__ = ["write_report"]
