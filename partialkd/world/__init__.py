"""Ranks: how they find each other, talk, stop, and tell when one is lost."""
