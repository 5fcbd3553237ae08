"""Initialises students."""
