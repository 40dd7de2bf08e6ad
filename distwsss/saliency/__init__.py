"""Saliency maps of the train photographs, by a network (`network`) or from a folder (`folder`); `maps` makes shards of
them. Imports no torch here."""
