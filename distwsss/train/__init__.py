"""One loop that trains classifiers and segmenters, with checkpoints and exact resume."""
