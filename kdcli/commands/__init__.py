"""The commands: one run each, readable top to bottom like a recipe."""
