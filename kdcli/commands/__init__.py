"""Implements the commands. Each is a recipe that reads from top to bottom."""
