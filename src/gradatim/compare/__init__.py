"""Which one on my data? One module per task."""
