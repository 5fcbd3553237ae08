"""What a run shows: tables, report.html, model cards."""
