"""Data: files, pictures, sources, orders and batches of labelled face images."""
