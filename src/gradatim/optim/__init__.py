"""How does it move? Optimizers, learning-rate schedules and inner loops."""
