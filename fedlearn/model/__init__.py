"""Models as vectors: builders, layout, and the vector of their parameters."""
