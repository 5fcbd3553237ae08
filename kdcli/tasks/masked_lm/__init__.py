"""Defines masked language modelling, which trains general students before a task."""
