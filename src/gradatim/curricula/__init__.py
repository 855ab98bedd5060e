"""In which order? Samplers, weights, difficulty and selection signals."""
