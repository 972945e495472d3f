"""The sweep over all rows of a shard: what a backend owes, the backends, and which one is chosen."""
