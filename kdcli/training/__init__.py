"""Training: the distiller, the Trainer, and the checks before it."""
