"""Reports: tables on the terminal, JSON, and one HTML page."""

from ridgeline.report.html import write_report

__all__ = ["write_report"]
