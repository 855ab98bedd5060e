"""Terminal tables, plots and HTML pages."""

from gradatim.report.folder import ReportError, check_folder
from gradatim.report.pages import write_report

__all__ = ["ReportError", "check_folder", "write_report"]
