"""Distill or annotate: the best compact language model per dollar, in JAX."""
