"""Checkpoints of teachers and students: found, loaded, converted, quantized."""
