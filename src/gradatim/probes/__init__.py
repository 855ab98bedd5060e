"""What did it learn? Measurements on any model."""
