"""Causal networks at work: generation chunk after chunk, for sampling and for self-forcing."""
