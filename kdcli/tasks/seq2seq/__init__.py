"""Defines translation and summarisation by encoder-decoder models."""
