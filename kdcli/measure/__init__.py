"""Measures speed and memory of models, each in a process of its own."""
