"""A page about a run or an estimator: one HTML file that needs no network.

What it shows is gathered by `page_of_run` or by an estimator, drawn by one module per picture, and
written by `write_page`.
"""

from spherescan.report.answers import ClassAnswers, NumberAnswers
from spherescan.report.of_run import page_of_run
from spherescan.report.page import Page, Section, Table, html_of, page_path, write_page

__all__ = [
    "ClassAnswers",
    "NumberAnswers",
    "Page",
    "Section",
    "Table",
    "html_of",
    "page_of_run",
    "page_path",
    "write_page",
]
