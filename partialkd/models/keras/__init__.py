"""Weights of Keras, read without Keras."""
