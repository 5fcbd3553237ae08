"""Masked language models, as general students before a task."""
