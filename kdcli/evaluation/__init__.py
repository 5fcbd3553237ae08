"""Predictions on a split, and what they show."""
