"""Does the paper hold? One module per paper."""
