"""A page about a run or an estimator: one HTML file that needs no network.

What it shows is gathered by `page_of_run` or by an estimator, drawn by one function per picture,
and written by `write_page`.
"""

from spherescan.report.answers import ClassAnswers, Known, NumberAnswers, without_own
from spherescan.report.curves import NetworkCurve, conflicts, learning_curves, network_curves
from spherescan.report.decisions import confusion, open_set, reliability
from spherescan.report.numbers import predicted_and_true
from spherescan.report.of_run import page_of_run
from spherescan.report.page import Page, Section, Table, html_of, page_path, write_page
from spherescan.report.parts import slowest_parts
from spherescan.report.sphere import class_sphere, number_sphere

__all__ = [
    "ClassAnswers",
    "Known",
    "NetworkCurve",
    "NumberAnswers",
    "Page",
    "Section",
    "Table",
    "class_sphere",
    "conflicts",
    "confusion",
    "html_of",
    "learning_curves",
    "network_curves",
    "number_sphere",
    "open_set",
    "page_of_run",
    "page_path",
    "predicted_and_true",
    "reliability",
    "slowest_parts",
    "without_own",
    "write_page",
]
