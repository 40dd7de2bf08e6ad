"""Losses as (sum, count) terms: the training loop divides by the count of the whole global batch."""
