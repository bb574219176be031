"""A report as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from nncompress.report.html.page import page

__all__ = ["page"]
