"""Variants and random seeds of a configuration, run and compared (`distwsss ablate`, docs/ablations.md).

`plan` reads the file and makes a configuration of every row, `runs` runs what is missing, `results` compares, `tables`
prints.
"""
