"""How does it answer? Thinking, constrained decoding, search and prompting."""
