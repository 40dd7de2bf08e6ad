"""Data sets as they are published, or as people have them, listed alike for `prepare`."""
