"""Presents the results of a run: tables, report.html, model cards."""
