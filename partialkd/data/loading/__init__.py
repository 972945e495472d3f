"""Batches: the loaders and what they do with records that cannot be read."""
