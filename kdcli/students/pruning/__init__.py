"""Initialises students with a part of their teacher's weights."""
