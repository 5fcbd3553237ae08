"""Computes and compares the predictions of models on a split."""
