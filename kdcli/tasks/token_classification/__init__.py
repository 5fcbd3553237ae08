"""Defines the tagging of words."""
