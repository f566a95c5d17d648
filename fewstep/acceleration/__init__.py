"""Find and learn the best few-step sampler of a model."""
