"""Initialisation of students."""
