"""A run folder becomes one HTML page: figures, curves, and the privacy statement in plain words."""

from fedlearn.report.page import write_failed_page, write_report

__all__ = ["write_failed_page", "write_report"]
