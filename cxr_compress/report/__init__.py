"""What one compression did, as one JSON file, tables, pictures and cards."""

from cxr_compress.report.report import (
    SCHEMA_VERSION,
    Row,
    build_report,
    read_report,
    render_forecast,
    render_report,
    render_table,
    write_report,
)

__all__ = [
    "SCHEMA_VERSION",
    "Row",
    "build_report",
    "read_report",
    "render_forecast",
    "render_report",
    "render_table",
    "write_report",
]
