"""What is there to learn? Datasets, generators and their metrics."""
