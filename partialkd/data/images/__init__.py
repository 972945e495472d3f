"""Pixels: decoding, encoding, resizing and augmenting images."""
