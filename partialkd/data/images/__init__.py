"""Decode, encode, resize and augment images."""
