"""Loaders make batches of records, and deal with records that cannot be read."""
