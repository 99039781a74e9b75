"""Few-step, streaming, interactive video generation in JAX."""
