"""What counts as right? Torch modules and sentence-transformers losses."""
