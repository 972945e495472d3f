"""Labelled images by index: what a data set looks like to the rest of the program."""
