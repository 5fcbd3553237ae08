"""Translation and summarisation by encoder-decoder models."""
