"""Language models that complete prompts and conversations."""
