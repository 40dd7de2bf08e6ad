"""From data sets to shards, and from shards to batches; called by the stages."""
