"""Shards: their format, their index, how they are written, read and checked."""
