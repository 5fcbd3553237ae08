"""The phases of a run: plan, validate, teacher, student, compare."""
