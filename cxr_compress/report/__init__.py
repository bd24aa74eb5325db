"""What one compression did, as one JSON file and one table."""

from cxr_compress.report.report import SCHEMA_VERSION, Row, build_report, read_report, write_report
from cxr_compress.report.table import render_findings, render_forecast, render_report, render_table

__all__ = [
    "SCHEMA_VERSION",
    "Row",
    "build_report",
    "read_report",
    "render_findings",
    "render_forecast",
    "render_report",
    "render_table",
    "write_report",
]
