"""CAMs, the dense CRF, the vote and the selection rule; `generate` runs them over shards. Imports no torch here."""
