"""Predicts for inputs of a user: finds the model that a path means, runs it, reads inputs and writes predictions."""
