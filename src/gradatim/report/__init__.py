"""Terminal tables, plots and HTML pages."""

from gradatim.report.folder import ReportError
from gradatim.report.pages import write_report

__all__ = ["ReportError", "write_report"]
