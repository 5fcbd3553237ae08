"""Defines the task of language models that complete prompts and conversations."""
