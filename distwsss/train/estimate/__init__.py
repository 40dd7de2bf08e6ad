"""One training step's memory, operations and time, reckoned without a GPU."""
