"""Trained networks as files for other programs, each compared with the network it was made from."""
