"""Ranks, seeding, progress, atomic files and the run folder: what every stage stands on."""
