"""Defines the task of text classification."""
