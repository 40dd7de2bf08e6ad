"""From shards to the micro-batches of a training step."""
